"""`scdd stats`: what it reads, what it shows and writes, and what it refuses."""

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from scdd.bn_comparison import compare_checkpoints, read_statistics, shortest_endings
from scdd.checkpoint import save_weights
from scdd.errors import CheckpointError, ConfigError
from scdd.models import create_model
from tests.conftest import Command, Outcome
from tests.damaged_copies import assert_read_or_refused
from tests.pickled_code import Code

Run = Callable[..., Outcome]


def net(seed: int = 0, widths: tuple[int, ...] = (4, 6)) -> nn.Sequential:
    """Convolutions 0, 2, ... each with a BatchNorm 1, 3, ... whose statistics are of data."""
    torch.manual_seed(seed)
    modules: list[nn.Module] = []
    for wide, width in zip((3, *widths), widths, strict=False):
        modules += [nn.Conv2d(wide, width, 3), nn.BatchNorm2d(width)]
    model = nn.Sequential(*modules)
    model(torch.randn(4, 3, 16, 16))
    return model


def write(path: Path, *arguments: Any) -> Path:
    torch.save({"state_dict": net(*arguments).state_dict()}, path)
    return path


def norms(model: nn.Sequential) -> list[nn.BatchNorm2d]:
    return [module for module in model if isinstance(module, nn.BatchNorm2d)]


def tables(text: str) -> list[list[list[str]]]:
    """The cells of every Markdown table in a text, without the rule below the head."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("| -"):
            continue
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [cells for cells in found if cells]


def variance(*arrays: Tensor | None) -> str:
    joined = np.concatenate([array.double().numpy() for array in arrays if array is not None])
    return f"{np.var(joined):.3g}"


# What is read


@pytest.mark.parametrize("layout", ["bare", "state_dict", "model", "parallel", "old format"])
def test_a_checkpoint_is_read_whatever_is_around_its_weights(layout: str, tmp_path: Path):
    weights = net().state_dict()
    parallel = {f"module.{key}": tensor for key, tensor in weights.items()}
    content: dict[str, Any] = {
        "bare": weights,
        "state_dict": {"epoch": 3, "state_dict": weights, "optimizer": {"lr": 0.1}},
        "model": {"model": weights, "arch": "small"},
        "parallel": {"state_dict": parallel},
        "old format": weights,
    }
    new = layout != "old format"
    torch.save(content[layout], tmp_path / "c.pt", _use_new_zipfile_serialization=new)
    found = read_statistics(tmp_path / "c.pt")
    assert list(found) == list(weights)
    assert all(torch.equal(found[key], tensor) for key, tensor in weights.items())


@pytest.mark.parametrize("own", [True, False], ids=["of scdd", "of others"])
def test_a_safetensors_file_is_read_in_the_order_of_the_network(own: bool, tmp_path: Path):
    weights = create_model("resnet101", 2, 32).state_dict()
    weights = {key: value.contiguous() for key, value in weights.items() if "running" in key}
    path = tmp_path / "w.safetensors"
    save_weights(path, weights, {"arch": "resnet101"}) if own else save_file(weights, path)
    assert list(read_statistics(path)) == list(weights)


# Names


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/runs/a.pt"], ["a.pt"]),
        (["/runs/a.pt", "/runs/b.pt"], ["a.pt", "b.pt"]),
        (["/x/moco/t.pt", "/x/dino/t.pt", "/x/dino/u.pt"], ["moco/t.pt", "dino/t.pt", "u.pt"]),
        (["/a/x/t.pt", "/b/x/t.pt", "/t.pt"], ["a/x/t.pt", "b/x/t.pt", "/t.pt"]),
        (["/x/\x1b[31mred.pt"], ["\N{REPLACEMENT CHARACTER}[31mred.pt"]),
    ],
)
def test_a_checkpoint_is_called_by_its_shortest_unique_ending(paths: list[str], names: list[str]):
    assert shortest_endings([Path(path) for path in paths]) == names


# What is shown and written


def test_one_checkpoint_has_one_table_with_a_row_for_every_layer(tmp_path: Path):
    text = compare_checkpoints([write(tmp_path / "a.pt")], None)
    assert text.startswith("a.pt\n\n|")
    (head, *body), first_and_second = tables(text)[0], norms(net())
    assert len(tables(text)) == 1 and head[:2] == ["BatchNorm layer", "channels"]
    assert [row[:2] for row in body] == [["1", "4"], ["3", "6"], ["overall", "10"]]
    groups = [[norm] for norm in first_and_second] + [first_and_second]
    for row, group in zip(body, groups, strict=True):
        assert row[2] == variance(*(norm.running_mean for norm in group))
        assert row[3] == variance(*(norm.running_var for norm in group))
        normals = [torch.distributions.Normal(0, norm.running_var.sqrt()) for norm in group]
        entropy = sum(normal.entropy().sum().item() for normal in normals)
        assert float(row[4]) == pytest.approx(entropy, abs=0.006)


def test_several_checkpoints_stand_side_by_side_with_a_dash_where_one_has_no_such_layer(
    tmp_path: Path,
):
    small, large = (4, 6), (5, 6, 7)
    paths = [write(tmp_path / "small.pt", 0, small), write(tmp_path / "large.pt", 1, large)]
    found = tables(compare_checkpoints(paths, None))
    assert len(found) == 3
    for head, *body in found:
        assert head == ["BatchNorm layer", "channels", "small.pt", "large.pt"]
        assert [row[:2] for row in body] == [
            ["1", "4/5"],
            ["3", "6"],
            ["5", "7"],
            ["overall", "10/18"],
        ]
        assert [row[2] == "-" for row in body] == [False, False, True, False]
    means = [[norm.running_mean for norm in norms(net(*made))] for made in ((0, small), (1, large))]
    shown = found[0][1:]
    assert [row[2] for row in shown[:2]] == [variance(mean) for mean in means[0]]
    assert [row[3] for row in shown[:3]] == [variance(mean) for mean in means[1]]
    assert shown[3][2:] == [variance(*own) for own in means]


@pytest.mark.parametrize(
    ("networks", "together"),
    [(("stem a c", "stem a b c d"), "stem a b c d"), (("stem a b c", "stem c d"), "stem a b c d")],
)
def test_layers_that_only_one_network_has_stand_where_they_are_in_it(
    networks: tuple[str, ...], together: str, tmp_path: Path
):
    paths = [tmp_path / f"{number}.pt" for number in range(len(networks))]
    for path, names in zip(paths, networks, strict=True):
        layers = nn.ModuleDict({name: nn.BatchNorm2d(2) for name in names.split()})
        torch.save(layers.state_dict(), path)
    shown = tables(compare_checkpoints(paths, None))[0][1:]
    assert [row[0] for row in shown] == [*together.split(), "overall"]


def test_a_channel_that_never_varied_is_explained(tmp_path: Path):
    model = net()
    norms(model)[0].running_var[1] = 0
    torch.save(model.state_dict(), tmp_path / "a.pt")
    text = compare_checkpoints([tmp_path / "a.pt"], None)
    assert tables(text)[0][1][4] == "-inf" and "-inf where a channel" in text
    assert "-inf" not in compare_checkpoints([write(tmp_path / "b.pt")], None)


def test_the_command_shows_tables_and_writes_a_picture_and_full_figures(
    scdd_command: Command, tmp_path: Path
):
    for number, folder in enumerate(("moco", "dino")):
        (tmp_path / folder).mkdir()
        weights = net(number).state_dict()
        save_weights(tmp_path / folder / "teacher.safetensors", weights, {"arch": "small"})
    paths = ["moco/teacher.safetensors", "dino/teacher.safetensors"]
    done = scdd_command("stats", *paths, "--out", "evidence")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert all(cells[0][2:] == paths for cells in tables(done.stdout))
    assert "Files: evidence/bn_stats.csv, bn_stats.png" in done.stdout
    assert sorted(os.listdir(tmp_path / "evidence")) == ["bn_stats.csv", "bn_stats.png"]
    with Image.open(tmp_path / "evidence" / "bn_stats.png") as picture:
        picture.load()
    with (tmp_path / "evidence" / "bn_stats.csv").open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    assert [(row["checkpoint"], row["k"], row["layer"]) for row in written] == [
        (path, k, layer) for path in paths for k, layer in (("0", "1"), ("1", "3"), ("", "overall"))
    ]
    for number in range(2):
        for row, norm in zip(written[3 * number :], norms(net(number)), strict=False):
            mean, var = norm.running_mean.double().numpy(), norm.running_var.double().numpy()
            assert int(row["channels"]) == mean.size
            assert float(row["mean_of_running_mean"]) == pytest.approx(mean.mean())
            assert float(row["variance_of_running_mean"]) == pytest.approx(np.var(mean))
            assert float(row["mean_of_running_var"]) == pytest.approx(var.mean())
            assert float(row["variance_of_running_var"]) == pytest.approx(np.var(var))
            entropy = (0.5 * np.log(2 * np.pi * np.e * var)).sum()
            assert float(row["entropy_nats"]) == pytest.approx(entropy)


def test_nothing_that_a_terminal_would_obey_is_printed_or_written(
    warm_command: Run, tmp_path: Path
):
    red = tmp_path / "\x1b[31mred.pt"
    hostile = {f"\x1b[2J\n{key}": value for key, value in net().state_dict().items()}
    torch.save(net().state_dict() | hostile, red)
    plain = write(tmp_path / "plain.pt")
    done = warm_command("stats", red, plain, "--out", "evidence")
    written = (tmp_path / "evidence" / "bn_stats.csv").read_text(encoding="utf-8")
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, done.stderr, written):
        assert "\x1b" not in text
    assert "[31mred.pt" in done.stdout and "[2J" not in done.stdout


# What is refused


def spoil(path: Path, how: str) -> None:
    """Make a checkpoint that cannot be used."""
    weights: dict[str, Any] = net().state_dict()
    if how == "no BatchNorm":
        weights = nn.Linear(2, 2).state_dict()
    elif how == "NaN":
        weights["3.running_var"][1] = float("nan")
    elif how == "code":
        weights["4"] = Code(path.with_name("ran"))
    torch.save([1, 2] if how == "no weights" else {"state_dict": weights}, path)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1")
    elif how == "missing":
        path.unlink()
    elif how == "folder":
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "cannot be read (No such file"),
        ("folder", "cannot be read (Is a directory)"),
        ("truncated", "is no weights file"),
        ("empty", "is no weights file"),
        ("text", "is no weights file"),
        ("code", "pickled code (posix.mkdir), which scdd never runs"),
        ("no weights", "holds no weights by name"),
        ("no BatchNorm", "holds no BatchNorm layer"),
        ("NaN", "the statistics of layer '3' are not finite"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_one_sentence_and_nothing_is_written(
    how: str, words: str, warm_command: Run, tmp_path: Path
):
    good, bad = write(tmp_path / "good.pt"), tmp_path / "bad.pt"
    spoil(bad, how)
    done = warm_command("stats", good, bad, "--out", "evidence")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: {bad}: ") and done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not (tmp_path / "evidence").exists() and not (tmp_path / "ran").exists()


def test_a_truncated_safetensors_file_is_refused(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    save_weights(path, net().state_dict(), {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="is damaged or cut short"):
        read_statistics(path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_checkpoint_cut_or_flipped_anywhere_is_read_or_refused_and_never_crashes(
    suffix: str, tmp_path: Path
):
    path, weights = tmp_path / f"c{suffix}", net().state_dict()
    if suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=suffix == ".pt")
    assert_read_or_refused(path, 200, lambda: compare_checkpoints([path], None))


def test_the_same_checkpoint_twice_is_refused_however_it_is_spelt(tmp_path: Path):
    path = write(tmp_path / "a.pt")
    (tmp_path / "link.pt").symlink_to(path)
    for again in (path, tmp_path / "." / ".." / tmp_path.name / "a.pt", tmp_path / "link.pt"):
        with pytest.raises(CheckpointError, match="is given twice"):
            compare_checkpoints([path, again], None)


@pytest.mark.parametrize("name", ["bn_stats.csv", "bn_stats.png"])
def test_files_of_others_stay_and_own_ones_are_written_anew(name: str, tmp_path: Path):
    first, second = write(tmp_path / "a.pt"), write(tmp_path / "b.pt", 1)
    out = tmp_path / "out"
    compare_checkpoints([first], out)
    before = (out / name).read_bytes()
    compare_checkpoints([second], out)
    assert (out / name).read_bytes() != before
    (out / name).write_bytes(b"mine")
    with pytest.raises(ConfigError, match=f"{name}: is there, and not from scdd stats"):
        compare_checkpoints([first], out)
    assert (out / name).read_bytes() == b"mine"
    (out / name).unlink()
    (out / name).mkdir()
    with pytest.raises(ConfigError, match="is there, and not from scdd stats"):
        compare_checkpoints([first], out)


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path):
    path = write(tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="is not a folder"):
        compare_checkpoints([path], path)
