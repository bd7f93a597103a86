"""A study as files of a limited size, and back: whole, or refused in a sentence."""

import argparse
import json
import os
import random
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from benchmarks.study import (
    StudyFolder,
    check_place,
    fill_from,
    parse_size,
    reserve,
    write_pieces,
)
from scdd.checkpoint import Checkpoint
from scdd.errors import DiskFull, UserError

TITLE = "some study"
SMALL = 10_000
"""Bytes of a piece."""


def study(folder: Path, turn: int = 1, title: str = TITLE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    record = {"schema": "scdd study folder 1", "title": title, "turn": turn}
    (folder / "study.json").write_text(json.dumps(record))
    return folder


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


FILES = st.dictionaries(
    st.sampled_from(["rows/a-0.json", "runs/a-0/probe/w.safetensors", "runs/b-0/x.checkpoint"]),
    st.tuples(st.integers(0, 60_000), st.integers(0, 2)),
)


@settings(max_examples=40)
@given(before=FILES, after=FILES, most=st.integers(SMALL, 90_000))
def test_what_is_cut_into_pieces_twice_comes_back_whole(
    before: dict[str, tuple[int, int]],
    after: dict[str, tuple[int, int]],
    most: int,
    tmp_path_factory: pytest.TempPathFactory,
):
    """Contents of few seeds, so that some stay, some change and some are in two files."""
    root = tmp_path_factory.mktemp("pieces")
    folder, pieces = root / "study", root / "pieces"
    for turn, files in enumerate((before, after), start=1):
        study(folder, turn)
        for path in folder.glob("r*/**/*"):
            if path.is_file():
                path.unlink()
        for name, (size, seed) in files.items():
            write(folder, name, random.Random(seed).randbytes(size))
        write_pieces(folder, pieces, TITLE, turn, most)
        assert all(path.stat().st_size <= most for path in pieces.glob("*.piece"))
    named = json.loads((pieces / "manifest.json").read_text())["pieces"]
    assert {path.name for path in pieces.iterdir()} == {*named, "manifest.json"}
    fill_from(pieces, root / "other", TITLE)
    assert contents(root / "other") == contents(folder)


def test_links_are_links_again_and_what_is_cheap_stays_behind(tmp_path: Path):
    folder, pieces = study(tmp_path / "study"), tmp_path / "pieces"
    made = write(folder, "runs/a-0/squeeze/backbone.safetensors", b"weights" * 5000)
    for name in ("runs/b-0/squeeze/backbone.safetensors", "runs/a-0/backbone.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(made, folder / name)
    lock = write(folder, "runs/a-0/run.lock", b"1")
    for name in ("runs/a-0/probe/features/v.safetensors", "study.lock", "runs/a-0/gallery.png"):
        write(folder, name, b"cheap" * 9000)
    write_pieces(folder, pieces, TITLE, 1, SMALL)
    assert sum(path.stat().st_size for path in pieces.glob("*.piece")) < 36_000, "once"
    other = tmp_path / "other"
    fill_from(pieces, other, TITLE)
    found = {str(path.relative_to(other)) for path in other.rglob("*") if path.is_file()}
    assert found == {
        "study.json",
        str(lock.relative_to(folder)),
        *(f"runs/{name}/backbone.safetensors" for name in ("a-0", "a-0/squeeze", "b-0/squeeze")),
    }
    assert (other / "runs/b-0/squeeze/backbone.safetensors").stat().st_nlink == 3


def test_of_a_row_that_is_over_only_what_others_may_share_is_kept(tmp_path: Path):
    folder, pieces = study(tmp_path / "study"), tmp_path / "pieces"
    kept = ["rows/a-0.json", "runs/a-0/squeeze/b", "runs/b-0/relabel/distilled.h5"]
    for name in (*kept, "runs/a-0/relabel/distilled.h5", "runs/a-0/distilled.h5", "apps/c/net"):
        write(folder, name, name.encode())
    write_pieces(folder, pieces, TITLE, 1, SMALL, over=("a-0", "c"))
    fill_from(pieces, tmp_path / "other", TITLE)
    assert contents(tmp_path / "other").keys() == {*kept, "study.json"}


def test_a_row_may_be_called_as_what_is_cheap_inside_of_a_step(tmp_path: Path):
    folder, pieces = study(tmp_path / "study"), tmp_path / "pieces"
    kept = write(folder, "runs/features-0/squeeze/squeeze.checkpoint", b"state")
    write(folder, "runs/features-0/probe_labellers/a/features-05/v.safetensors", b"cheap")
    write_pieces(folder, pieces, TITLE, 1, SMALL)
    fill_from(pieces, tmp_path / "other", TITLE)
    assert contents(tmp_path / "other").keys() == {str(kept.relative_to(folder)), "study.json"}


def test_the_time_that_is_kept_for_pieces_grows_with_what_goes_into_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, now = study(tmp_path / "study"), 0.0
    monkeypatch.setattr("piece_files.time", SimpleNamespace(monotonic=lambda: now))
    seconds = reserve(folder, tuple)
    assert seconds() == pytest.approx(1, abs=0.01)
    with write(folder, "runs/a-0/squeeze/squeeze.checkpoint", b"").open("wb") as file:
        file.truncate(500_000_000)  # Takes no room.
    os.link(file.name, folder / "runs/a-0/link")
    assert seconds() == pytest.approx(1, abs=0.01), "counting takes time too"
    now = 11.0
    assert seconds() == pytest.approx(11, abs=0.01)


def test_the_weights_that_two_files_have_in_common_are_written_once(tmp_path: Path):
    folder, pieces = study(tmp_path / "study"), tmp_path / "pieces"
    weights = {f"layer{n}": torch.randn(200, 200) for n in range(4)}
    save_file(weights, write(folder, "backbone.safetensors", b""))
    save_file(weights | {"fc": torch.randn(10, 200)}, write(folder, "teacher.safetensors", b""))
    write_pieces(folder, pieces, TITLE, 1, 100_000)
    total = sum(path.stat().st_size for path in pieces.glob("*.piece"))
    assert 640_000 < total < 660_000, "and not twice that"
    fill_from(pieces, tmp_path / "other", TITLE)
    assert contents(tmp_path / "other") == contents(folder)


def test_a_piece_that_is_still_of_use_is_not_written_again(tmp_path: Path):
    folder, pieces = study(tmp_path / "study"), tmp_path / "pieces"
    write(folder, "network", random.Random(1).randbytes(60_000))
    write(folder, "state", random.Random(2).randbytes(30_000))
    write_pieces(folder, pieces, TITLE, 1, SMALL)
    before = {path.name: path.stat().st_mtime_ns for path in pieces.glob("*.piece")}
    write(study(folder, 2), "state", random.Random(3).randbytes(30_000))
    said = write_pieces(folder, pieces, TITLE, 2, SMALL)
    same = [p for p in pieces.glob("*.piece") if before.get(p.name) == p.stat().st_mtime_ns]
    assert len(same) == 6 and said.endswith("10 pieces of 90.1 kB in all, 4 of them new")


def test_as_bf16_moments_lose_what_bf16_loses_and_all_else_stays(tmp_path: Path):
    folder, pieces = study(tmp_path / "study"), tmp_path / "pieces"
    net = torch.nn.Linear(300, 300)
    optimizer = torch.optim.AdamW(net.parameters())
    for _ in range(300):
        net(torch.randn(4, 300)).square().sum().backward()
        optimizer.step()
    state = {"step": 300, "net": net.state_dict(), "optimizer": optimizer.state_dict()}
    Checkpoint(folder / "x.checkpoint", 0).save(state)
    write_pieces(folder, pieces, TITLE, 1, 1_000_000)
    whole = sum(path.stat().st_size for path in pieces.glob("*.piece"))
    write_pieces(study(folder, 2), pieces, TITLE, 2, 1_000_000, bf16=True)
    smaller = sum(path.stat().st_size for path in pieces.glob("*.piece"))
    assert smaller < 0.7 * whole, "weights and two moments: 4 + 2 + 2 bytes of 12"
    fill_from(pieces, tmp_path / "other", TITLE)
    found = Checkpoint(tmp_path / "other" / "x.checkpoint", 0).load()
    assert found is not None and found["step"] == 300
    for name, tensor in net.state_dict().items():
        assert torch.equal(found["net"][name], tensor)
    for number, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            ours = found["optimizer"]["state"][number][name]
            assert ours.dtype == value.dtype == torch.float32
            if name == "step":
                assert ours == value == 300, "which bf16 would make 300, but 301 as well"
            else:
                torch.testing.assert_close(ours, value, rtol=2**-8, atol=0)


def test_a_damaged_checkpoint_comes_back_as_it_is_to_be_refused_where_it_is_read(tmp_path: Path):
    folder, pieces = study(tmp_path / "study"), tmp_path / "pieces"
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(5000)}}}
    Checkpoint(folder / "x.checkpoint", 0).save({"optimizer": optimizer})
    data = bytearray((folder / "x.checkpoint").read_bytes())
    data[len(data) // 2] ^= 1  # Of a moment: torch reads past it.
    (folder / "x.checkpoint").write_bytes(data)
    write(folder, "y.checkpoint", b"no checkpoint")
    write_pieces(folder, pieces, TITLE, 1, SMALL, bf16=True)
    fill_from(pieces, tmp_path / "other", TITLE)
    assert contents(tmp_path / "other") == contents(folder)


@pytest.fixture
def cut(tmp_path: Path) -> tuple[Path, Path]:
    """Pieces of a study at its third turn, and where it might go on."""
    folder, pieces = study(tmp_path / "study", 3), tmp_path / "pieces"
    write(folder, "network", random.Random(1).randbytes(25_000))
    write_pieces(folder, pieces, TITLE, 3, SMALL)
    return pieces, tmp_path / "other"


def test_a_folder_that_is_newer_is_left_alone_and_an_older_one_moved_aside(cut: tuple[Path, Path]):
    pieces, other = cut
    for turn in (3, 4):
        write(study(other, turn), "mine", b"newer")
        fill_from(pieces, other, TITLE)
        assert contents(other).keys() == {"mine", "study.json"}
    study(other, 2)
    fill_from(pieces, other, TITLE)
    assert contents(other).keys() == {"network", "study.json"}
    (aside,) = other.parent.glob("other.old-*")
    assert (aside / "mine").read_bytes() == b"newer", "nothing is deleted"


def test_without_pieces_a_study_begins(tmp_path: Path):
    fill_from(tmp_path / "none", tmp_path / "other", TITLE)
    assert not (tmp_path / "other").exists()


def _missing(pieces: Path) -> None:
    (pieces / "0002.piece").unlink()


def _damaged(pieces: Path) -> None:
    data = bytearray((pieces / "0002.piece").read_bytes())
    data[5000] ^= 1
    (pieces / "0002.piece").write_bytes(data)


def _no_manifest(pieces: Path) -> None:
    (pieces / "manifest.json").unlink()


def _change(pieces: Path, **values: object) -> None:
    manifest = json.loads((pieces / "manifest.json").read_text())
    (pieces / "manifest.json").write_text(json.dumps(manifest | values))


def _another_offset(pieces: Path) -> None:
    parts = json.loads((pieces / "manifest.json").read_text())["parts"]
    (key, (name, offset, length)) = max(parts.items(), key=lambda item: item[1][2])
    _change(pieces, parts=parts | {key: [name, offset + 1, length]})


LINK = {"path": "x", "link": "y"}


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_missing, "0002.piece: is missing; bring it too, or choose another --pieces"),
        (_damaged, "0002.piece: is damaged, or of another time than manifest.json"),
        (_no_manifest, "manifest.json: is missing, though there is 0001.piece"),
        (lambda p: _change(p, study="other"), "is of the study 'other', not 'some study'"),
        (lambda p: _change(p, schema="x"), "manifest.json: holds 'x', not 'scdd pieces 1'"),
        (lambda p: _change(p, turn="3"), "manifest.json: is damaged; bring it anew"),
        (lambda p: _change(p, files=[LINK | {"path": "../x"}]), "names ../x, which lies outside"),
        (lambda p: _change(p, files=[LINK | {"path": "/x"}]), "names /x, which lies outside"),
        (lambda p: _change(p, files=[LINK | {"link": "../x"}]), "names ../x, which lies outside"),
        (lambda p: _change(p, files=[{"path": "x"}]), "manifest.json: is damaged; bring it anew"),
        (lambda p: _change(p, parts={}), "manifest.json: is damaged; bring it anew"),
        (_another_offset, "manifest.json: is damaged; bring it anew"),
        (lambda p: (p / "manifest.json").write_text("[1"), "manifest.json: is damaged"),
    ],
)
def test_pieces_that_cannot_serve_are_named_and_change_nothing(
    harm: object, said: str, cut: tuple[Path, Path]
):
    pieces, other = cut
    harm(pieces)
    write(study(other, 1), "mine", b"older")
    with pytest.raises(UserError) as caught:
        fill_from(pieces, other, TITLE)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert (
        contents(other).keys() == {"mine", "study.json"} and len(list(other.parent.iterdir())) == 3
    )


def test_a_folder_of_another_study_is_not_filled(cut: tuple[Path, Path]):
    pieces, other = cut
    study(other, 1, "quite another")
    with pytest.raises(UserError, match="belongs to the study 'quite another', not 'some study'"):
        fill_from(pieces, other, TITLE)


def test_two_copies_that_were_both_gone_on_with_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The pieces of one would take the place of what the other has made."""
    here, there, pieces = tmp_path / "here", tmp_path / "there", tmp_path / "pieces"
    with StudyFolder(here).held(TITLE) as turn:
        write_pieces(here, pieces, TITLE, turn, SMALL)
    fill_from(pieces, there, TITLE)
    with StudyFolder(here).held(TITLE):
        pass
    fill_from(pieces, here, TITLE)
    assert capsys.readouterr().out.endswith(
        f"{here}: is newer than the pieces in {pieces}, and gone on with\n"
    )
    for _ in range(2):
        with StudyFolder(there).held(TITLE) as turn:
            write_pieces(there, pieces, TITLE, turn, SMALL)
        with pytest.raises(UserError, match="here: was gone on with, and so was another copy"):
            fill_from(pieces, here, TITLE)
    here.rename(tmp_path / "away")
    fill_from(pieces, here, TITLE)
    assert contents(here).keys() == {"study.json"}


def test_a_folder_that_a_process_works_in_is_not_moved_aside(cut: tuple[Path, Path]):
    pieces, other = cut
    with StudyFolder(other).held(TITLE):
        write(other, "mine", b"older")
        with pytest.raises(UserError, match="another process is at work on this study"):
            fill_from(pieces, other, TITLE)
        assert contents(other).keys() == {"mine", "study.json", "study.lock"}
    assert len(list(other.parent.iterdir())) == 3


def test_without_room_nothing_is_filled_and_nothing_left_behind(cut: tuple[Path, Path]):
    pieces, other = cut
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(DiskFull, match="no space left to write it"):
            fill_from(pieces, other, TITLE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path.name for path in other.parent.iterdir()} == {"study", "pieces"}


def test_a_place_where_pieces_cannot_be_is_refused_before_there_are_any(tmp_path: Path):
    folder = study(tmp_path / "study")
    for pieces in (folder, folder / "pieces"):
        with pytest.raises(UserError, match=r"lies in .*study; choose a folder beside it"):
            check_place(pieces, folder)
    (tmp_path / "file").touch()
    for pieces in (tmp_path / "file", tmp_path / "file" / "pieces"):
        with pytest.raises(UserError, match=r"cannot be written to \(.*\); choose another folder"):
            check_place(pieces, folder)
    check_place(tmp_path / "new" / "pieces", folder)
    assert (tmp_path / "new" / "pieces").is_dir()


def test_a_kill_between_piece_and_manifest_leaves_those_of_before(
    cut: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    pieces, other = cut
    folder = study(other.with_name("study"), 4)
    write(folder, "network", random.Random(9).randbytes(25_000))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pieces.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        write_pieces(folder, pieces, TITLE, 4, SMALL)
    monkeypatch.undo()
    fill_from(pieces, other, TITLE)
    assert (other / "network").read_bytes() == random.Random(1).randbytes(25_000)
    write_pieces(folder, pieces, TITLE, 4, SMALL)
    fill_from(pieces, other, TITLE)
    assert (other / "network").read_bytes() == random.Random(9).randbytes(25_000)


@pytest.mark.parametrize(
    ("text", "count"), [("15MB", 15_000_000), ("500 kB", 500_000), ("20000", 20_000)]
)
def test_sizes_are_read_as_they_are_written(text: str, count: int):
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "MB", "0", "9kB", "15mb", "-15MB", "1.2.3MB"])
def test_sizes_that_are_none_are_refused(text: str):
    with pytest.raises(argparse.ArgumentTypeError, match="wants 15MB, say"):
        parse_size(text)
