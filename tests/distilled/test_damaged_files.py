"""Cut-off and bit-flipped files are refused or found out, and never crash or lie."""

import random
from pathlib import Path

import h5py
import pytest
import torch

from scdd.config.relabel import RelabelConfig
from scdd.distilled import DistilledFile, read_header, verify
from scdd.errors import FormatError


def everything(path: Path) -> list[object]:
    """All that a file says, in comparable form."""
    with DistilledFile(path) as file:
        assert file.views is not None
        parts = [file.images(), file.labels(), *file.views.parameters.values()]
        parts += [file.logits(view) for view in range(file.num_views)]
        return [file.header, file.views.ops, file.views.padding, *[p.tolist() for p in parts]]


def is_one_sentence(error: FormatError, path: Path) -> bool:
    text = str(error)
    return text.startswith(f"{path}: ") and "; " in text and "\n" not in text


def check_flips(file: Path, flips: int, seed: int) -> None:
    whole, data = everything(file), file.read_bytes()
    draw = random.Random(seed)
    for _ in range(flips):
        damaged = bytearray(data)
        at, bit = draw.randrange(len(data)), draw.randrange(8)
        damaged[at] ^= 1 << bit
        file.write_bytes(damaged)
        faults = verify(file)
        try:
            found = everything(file)
        except FormatError as error:
            assert is_one_sentence(error, file)
            assert faults, f"byte {at} bit {bit}: refused on opening, but verified"
            continue
        assert faults or found == whole, f"byte {at} bit {bit}: other values, but verified"


def check_cuts(file: Path, cuts: int, seed: int) -> None:
    data = file.read_bytes()
    draw = random.Random(seed)
    for length in [0, 1, 8, len(data) - 1, *(draw.randrange(len(data)) for _ in range(cuts))]:
        file.write_bytes(data[:length])
        with pytest.raises(FormatError) as caught:
            everything(file)
        assert is_one_sentence(caught.value, file)
        assert verify(file)


def test_a_flipped_bit_never_gives_other_values_unnoticed(file: Path):
    check_flips(file, 100, seed=0)


def test_a_cut_off_file_is_refused(file: Path):
    check_cuts(file, 60, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_many_flipped_bits_never_give_other_values_unnoticed(file: Path, seed: int):
    check_flips(file, 2000, seed)


@pytest.mark.slow
def test_a_file_cut_off_anywhere_is_refused(file: Path):
    check_cuts(file, 2000, seed=1)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("images", 1),
        ("labels", 1),
        ("views/flip", 1),
        ("views/partner", 1),
        ("soft_labels/logits", 1),
    ],
)
def test_values_rewritten_with_right_checksums_do_not_match_the_sha256(
    file: Path, name: str, change: int
):
    with h5py.File(file, "r+") as root:
        values = root[name][()]
        values.flat[0] += change
        root[name][...] = values
    with pytest.raises(FormatError, match=f"'{name}' does not match its sha256"):
        DistilledFile(file)
    assert any("does not match its sha256" in fault for fault in verify(file))


def test_a_rewritten_hash_or_header_does_not_match_the_digest(file: Path):
    data = file.read_bytes()
    for owner, attribute, value in [
        ("images", "sha256", "0" * 64),
        ("/", "seed", 5),
        ("views", "padding", 3),
    ]:
        file.write_bytes(data)
        with h5py.File(file, "r+") as root:
            root[owner].attrs[attribute] = value
        with pytest.raises(FormatError, match="does not match the digest"):
            read_header(file)


def test_verify_names_every_fault_once(file: Path):
    with h5py.File(file, "r+") as root:
        root["labels"][0] = 7
        root["soft_labels/logits"][1, 2, 0] = float("nan")
        root["views/partner"][0, 0] = 60
    faults = verify(file)
    assert faults == [
        "'labels' does not match its sha256",
        "'views/partner' does not match its sha256",
        "'soft_labels/logits' does not match its sha256",
        "labels lie in 0 .. 7, not in -1 .. 2",
        "view records: partner holds a value outside its range",
        "soft labels of view 1 are not finite",
    ]


def test_large_datasets_are_left_to_verify(content, tmp_path, monkeypatch):
    path = tmp_path / "distilled.h5"
    content(RelabelConfig()).write(path)
    monkeypatch.setattr("scdd.distilled.reader.SMALL_BYTES", 100)
    with h5py.File(path, "r+") as root:
        root["soft_labels/logits"][3, 0, 0] += 1
    with DistilledFile(path) as file:
        assert torch.isfinite(file.logits(3)).all()
    assert verify(path) == ["'soft_labels/logits' does not match its sha256"]
