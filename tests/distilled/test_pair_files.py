"""Files of images and representations: what is written is what is read, and all else is refused."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from scdd.distilled import (
    DenseSet,
    DistilledDataset,
    DistilledFile,
    FactoredSet,
    Pairs,
    RepresentationDataset,
    materialised,
    read_header,
    verify,
    write_pairs,
)
from scdd.distilled.bill import storage_floats
from scdd.distilled.format import Header
from scdd.distilled.pairs import stored_parts
from scdd.errors import FormatError
from tests.distilled.conftest import make_content
from tests.distilled.random_sets import header_for, numbers_of, random_dense, random_set

TURNS = st.permutations([1, 2, 3]).flatmap(
    lambda order: st.integers(0, 3).map(lambda n: (0, *order[:n]))
)
KINDS = ["factored", "stored", "dense", "unit"]


def made(kind: str, **sizes: object) -> Pairs:
    """A set of one of the KINDS."""
    if kind in ("factored", "stored"):
        return random_set(approximation=kind == "factored", stored=kind == "stored", **sizes)  # type: ignore[arg-type]
    return random_dense(pixels=torch.uint8 if kind == "unit" else torch.float32, **sizes)  # type: ignore[arg-type]


def written(folder: Path, kind: str) -> Path:
    parts = made(kind)
    write_pairs(folder / f"{kind}.h5", header_for(parts), parts)
    return folder / f"{kind}.h5"


def check_round_trip(parts: Pairs, header: Header, path: Path) -> None:
    digest = write_pairs(path, header, parts)
    with DistilledFile(path) as file:
        assert dataclasses.replace(file.header, digest="") == header
        assert file.header.digest == digest
        assert storage_floats(file.bill) == numbers_of(parts)
        assert torch.equal(file.labels(), torch.full((len(parts),), -1))
        found = file.pairs()
    assert type(found) is type(parts) and found.turns == parts.turns
    wanted = stored_parts(parts)
    assert stored_parts(found).keys() == wanted.keys()
    for name, values in stored_parts(found).items():
        assert values.dtype == wanted[name].dtype and torch.equal(values, wanted[name]), name
    for view in range(parts.num_views):
        assert torch.equal(found.images(view), parts.images(view))
        assert torch.equal(found.targets(view), parts.targets(view))
    assert verify(path) == []


@settings(deadline=None, max_examples=40)
@given(
    vectors=st.integers(1, 6),
    width=st.integers(1, 6),
    count=st.integers(1, 5),
    turns=TURNS,
    hidden=st.integers(1, 4),
    side=st.integers(1, 4),
    grown=st.integers(0, 4),
    dim=st.integers(1, 6),
    approximation=st.booleans(),
    stored=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    seed=st.integers(0, 99),
)
def test_a_factored_set_comes_back_and_decodes_to_the_same_bits(
    vectors, width, count, turns, hidden, side, grown, dim, approximation, stored, dtype, seed,
    tmp_path_factory,
):  # fmt: skip
    parts = random_set(
        vectors, width, count, turns, hidden, side, side + grown, dim,
        approximation, stored or not approximation, seed, dtype,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("factored") / "a.h5"
    check_round_trip(parts, header_for(parts), path)


@settings(deadline=None, max_examples=20)
@given(
    count=st.integers(1, 5),
    turns=TURNS,
    size=st.integers(1, 6),
    dim=st.integers(1, 6),
    pixels=st.sampled_from([torch.uint8, torch.float16, torch.float32]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_a_dense_set_comes_back(count, turns, size, dim, pixels, dtype, tmp_path_factory):
    parts = random_dense(count, turns, size, dim, pixels, dtype)
    check_round_trip(parts, header_for(parts), tmp_path_factory.mktemp("dense") / "a.h5")


def test_targets_of_a_single_view_may_lack_its_axis():
    draw = torch.randn(4, 3, generator=torch.manual_seed(0))
    assert torch.equal(DenseSet((0,), torch.zeros(4, 3, 2, 2), draw).targets(), draw)


@pytest.mark.parametrize("kind", ["factored", "stored"])
def test_a_dense_file_of_what_a_factored_one_decodes_is_the_same_stream(tmp_path: Path, kind: str):
    parts = random_set(count=5, approximation=kind == "factored", stored=kind == "stored", size=6)
    dense = materialised(parts)
    write_pairs(tmp_path / "a.h5", header_for(parts), parts)
    write_pairs(tmp_path / "b.h5", header_for(dense, method="boost"), dense)
    one, other = (RepresentationDataset.open(tmp_path / name) for name in ("a.h5", "b.h5"))
    assert len(one) == len(other) == 4 * 5 and one.num_views == 4
    assert one.steps(6) == 4 and one.steps(19) == 1  # One pair alone joins the batch before it.
    for first, second in zip(epoch(one, 6), epoch(other, 6), strict=True):
        torch.testing.assert_close(first.images, second.images, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(first.targets, second.targets, atol=1e-6, rtol=1e-6)


def epoch(data: RepresentationDataset, batch: int, skip: int = 0) -> list:
    return list(data.epoch(batch, torch.Generator().manual_seed(3), skip))


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_shows_every_view_of_every_image_once_with_its_target(tmp_path: Path, kind: str):
    path = written(tmp_path, kind)
    data, parts = RepresentationDataset.open(path), made(kind)
    images = torch.cat([torch.cat([plain(parts.images(v)) for v in range(4)])])
    targets = torch.cat([parts.targets(v) for v in range(4)])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    shown = epoch(data, 5)
    assert [len(pair.images) for pair in shown] == [5, 5, 6]
    torch.testing.assert_close(torch.cat([pair.images for pair in shown]), images[order])
    torch.testing.assert_close(torch.cat([pair.targets for pair in shown]), targets[order])
    assert all(
        torch.equal(a.images, b.images)
        for a, b in zip(epoch(data, 5, skip=1), shown[1:], strict=True)
    )
    loaded = list(DataLoader(data, batch_size=5, num_workers=2))
    torch.testing.assert_close(torch.cat([pair.images for pair in loaded]), images)
    torch.testing.assert_close(torch.cat([pair.targets for pair in loaded]), targets)
    torch.testing.assert_close(data[-1].targets, targets[-1])
    with pytest.raises(IndexError, match="there are 16 pairs, but number 16 was asked for"):
        data[16]


def plain(images: Tensor) -> Tensor:
    """Normalised, by hand, if they are pixels."""
    if images.dtype != torch.uint8:
        return images
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.2, 0.25)))
    return (images / 255 - mean) / std


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_set_has_the_same_digest_and_another_one_another(tmp_path: Path, kind: str):
    parts = made(kind)
    header = header_for(parts)
    first = write_pairs(tmp_path / "a.h5", header, parts)
    later = dataclasses.replace(header, created="later")
    assert write_pairs(tmp_path / "b.h5", later, parts) == first
    others = [dataclasses.replace(parts, turns=(0, 2, 1, 3))]
    for name, values in stored_parts(parts).items():
        if "/" not in name:
            field = {"images": "pixels", "targets": "vectors"}.get(name, name)
            others.append(dataclasses.replace(parts, **{field: getattr(parts, field) + 1}))
            assert values.numel() == getattr(parts, field).numel()
    digests = {write_pairs(tmp_path / "c.h5", header, other) for other in others}
    assert len(digests) == len(others) and first not in digests


@pytest.mark.parametrize("kind", ["factored", "dense"])
def test_a_set_over_its_budget_is_neither_written_nor_read(tmp_path: Path, kind: str):
    parts = made(kind)
    enough = header_for(parts).budget_n
    said = rf"set takes {numbers_of(parts)} numbers, more than the {51 * (enough - 1)} that budget"
    with pytest.raises(ValueError, match=said):
        write_pairs(tmp_path / "a.h5", header_for(parts, budget_n=enough - 1), parts)
    assert list(tmp_path.iterdir()) == []
    path = written(tmp_path, kind)
    with h5py.File(path, "r+") as root:
        root.attrs["budget_n"] = str(enough - 1)
    with pytest.raises(FormatError, match=said):
        read_header(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "dense"}, "kind of the header is dense, but that of the set factored"),
        ({"image_count": 5}, "image_count of the header is 5, but that of the set 4"),
        ({"image_size": 8}, "image_size of the header is 8, but that of the set 4"),
        ({"target_dim": 4}, "target_dim of the header is 4, but that of the set 3"),
    ],
)
def test_a_header_of_another_set_is_a_mistake_of_the_caller(tmp_path: Path, change, said):
    parts = random_set()
    with pytest.raises(ValueError, match=said):
        write_pairs(tmp_path / "a.h5", header_for(parts, **change), parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"class_names": ("a",)}, "class_names is not empty"),
        ({"ipc": 1, "budget_n": None}, "budget_n is not given, which representations need"),
        ({"image_count": 0}, "image_count is 0, not a positive number"),
        ({"target_dim": 0}, "target_dim is 0, not a positive number"),
        ({"pixel_space": "log"}, "pixel_space 'log' is not one of unit, normalized"),
        ({"pixel_space": "unit"}, "pixel_space of a factored set is not normalized"),
        ({"target_kind": "none", "class_names": ("a",)}, "which target_kind is not"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        header_for(random_set(), **change)


def test_values_that_cannot_be_stored_are_refused_by_name(tmp_path: Path):
    parts, path = random_set(), tmp_path / "a.h5"
    header = header_for(parts)
    wide = random_set(dtype=torch.float64)
    with pytest.raises(ValueError, match=r"image_mean is .*float64, not .*float16 or"):
        write_pairs(path, header, wide)
    bad = parts.target_basis.clone()
    bad[0, 0] = float("nan")
    with pytest.raises(ValueError, match="target_basis is not finite"):
        write_pairs(path, header, dataclasses.replace(parts, target_basis=bad))
    thin = dataclasses.replace(
        parts, image_basis=torch.zeros(0, 12), image_coefficients=torch.zeros(4, 0)
    )
    with pytest.raises(ValueError, match="image_basis is empty"):
        write_pairs(path, header, thin)
    assert list(tmp_path.iterdir()) == []


Change = Callable[[h5py.File], None]


def gone(name: str) -> Change:
    return lambda root: root.__delitem__(name)


def replaced(name: str, value: np.ndarray) -> Change:
    """Another dataset in the place of one, with the same hash."""

    def change(root: h5py.File) -> None:
        sha256 = root[name].attrs["sha256"]
        del root[name]
        root[name] = value
        root[name].attrs["sha256"] = sha256

    return change


def attribute(name: str, value: object, owner: str = "/") -> Change:
    return lambda root: root[owner].attrs.__setitem__(name, value)


def added(root: h5py.File) -> None:
    root["soft_labels"] = np.zeros(3)


def linked(name: str, link: object) -> Change:
    def change(root: h5py.File) -> None:
        del root[name]
        root[name] = link

    return change


REQUIRED = ["image_mean", "image_basis", "image_coefficients", "target_mean", "target_basis"]
HOSTILE: list[tuple[str, Change, str]] = [
    *(("factored", gone(name), f"'{name}' is missing") for name in REQUIRED),
    ("factored", gone("target_coefficients"), "'target_coefficients' is missing"),
    ("factored", gone("labels"), "'labels' is missing"),
    ("factored", gone("views"), "'views' is missing"),
    ("factored", gone("views/rot90"), "'views/rot90' is missing"),
    ("factored", gone("approximation"), "'approximation' is missing, which predicts targets"),
    ("stored", gone("view_coefficients"), "'approximation' is missing, which predicts targets"),
    *(
        ("factored", gone(f"approximation/{part}"), f"'approximation/{part}' is missing")
        for part in ("w0", "b0", "w1", "b1")
    ),
    ("dense", gone("targets"), "'targets' is missing"),
    ("dense", gone("images"), "'images' is missing"),
    ("dense", added, "'soft_labels' is unknown to format version 1"),
    ("factored", added, "'soft_labels' is unknown to format version 1"),
    ("dense", attribute("kind", "factored"), "is missing"),
    ("factored", attribute("kind", "dense"), "is missing|is unknown"),
    ("factored", attribute("kind", "sparse"), "kind 'sparse' is unknown here; it needs a newer"),
    ("factored", attribute("target_kind", "none"), "class_names is not a list of one text"),
    ("factored", attribute("target_dim", 4), "'target_mean' has shape \\[3\\], not \\[4\\]"),
    ("factored", attribute("image_count", 5), "'labels' has shape \\[4\\], not \\[5\\]"),
    ("factored", attribute("image_count", 0), "image_count is 0, not a positive number"),
    ("factored", attribute("image_count", "four"), "image_count is four, not a positive number"),
    ("factored", attribute("budget_n", "null"), "exactly one of ipc and budget_n"),
    ("unit", attribute("pixel_space", "normalized"), "'images' holds uint8, not float32"),
    ("dense", attribute("pixel_space", "unit"), "'images' holds float32, not uint8"),
    ("factored", attribute("ops", '["flip"]', "views"), "'views/flip' is missing"),
    ("factored", attribute("padding", 3, "views"), "views of representations are other than turns"),
    (
        "factored",
        replaced("image_basis", np.zeros((3, 3, 1, 2), "<f4")),
        "has shape \\[3, 3, 1, 2\\], not \\[any, 3, 2, 2\\]",
    ),
    (
        "factored",
        replaced("image_mean", np.zeros((3, 2, 8), "<f4")),
        "'image_mean' has shape \\[3, 2, 8\\], whose images are not square",
    ),
    (
        "factored",
        replaced("target_coefficients", np.zeros((4, 3), "<f4")),
        "'target_coefficients' has shape \\[4, 3\\], not \\[4, 2\\]",
    ),
    (
        "factored",
        replaced("approximation/w1", np.zeros((3, 2, 5), "<f4")),
        "'approximation/w1' has shape \\[3, 2, 5\\], not \\[3, 2, 2\\]",
    ),
    (
        "factored",
        replaced("image_basis", np.zeros((3, 3, 2, 2), "<f8")),
        "'image_basis' holds float64, not float32",
    ),
    (
        "dense",
        replaced("targets", np.zeros((3, 4, 3), "<f4")),
        "'targets' has shape \\[3, 4, 3\\], not \\[4, 4, 3\\]",
    ),
    ("factored", linked("image_mean", h5py.SoftLink("/target_mean")), "'image_mean' is a link"),
    (
        "dense",
        linked("targets", h5py.ExternalLink("other.h5", "/targets")),
        "'targets' is a link",
    ),
    ("factored", attribute("seed", 7), "the header does not match the digest"),
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_misleading_file_is_refused_in_one_sentence(tmp_path: Path, number: int):
    kind, change, said = HOSTILE[number]
    path = written(tmp_path, kind)
    with h5py.File(path, "r+") as root:
        change(root)
    with pytest.raises(FormatError, match=said) as caught:
        read_header(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "; " in text and "\n" not in text
    assert len(verify(path)) == 1


def forged(path: Path, name: str, change: Callable[[np.ndarray], None], writer: str) -> None:
    """Change values of a file in the writing of it, so that every hash and digest is right."""
    import scdd.distilled.streams as streams

    whole = streams.Stream.append

    def append(stream: streams.Stream, values: np.ndarray) -> None:
        values = values.copy()
        if stream.name == name:
            change(values)
        whole(stream, values)

    parts = made(writer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams.Stream, "append", append)
        write_pairs(path, header_for(parts), parts)


@pytest.mark.parametrize(
    ("kind", "name", "value", "said"),
    [
        ("factored", "image_basis", np.nan, "'image_basis' is not finite"),
        ("factored", "approximation/w1", np.inf, "'approximation/w1' is not finite"),
        ("dense", "targets", np.nan, "'targets' is not finite"),
        ("dense", "views/rot90", 1, "images of a view are turned by different quarters"),
        ("dense", "views/rot90", 9, "rot90 holds a value outside its range"),
        ("unit", "labels", 0, "labels lie in -1 .. 0, not in -1 .. -1"),
    ],
)
def test_values_that_make_no_set_are_refused_though_every_hash_is_right(
    tmp_path: Path, kind: str, name: str, value: float, said: str
):
    path = tmp_path / "forged.h5"
    forged(path, name, lambda values: values.reshape(-1).__setitem__(0, value), kind)
    with pytest.raises(FormatError, match=said):
        RepresentationDataset.open(path)
    (fault,) = verify(path)
    assert re.search(said, fault)


@pytest.mark.parametrize("kind", ["factored", "unit"])
def test_who_wants_class_labels_is_told_that_there_are_none(tmp_path: Path, kind: str):
    path = written(tmp_path, kind)
    with pytest.raises(FormatError, match="holds representations as targets, no class labels; "):
        DistilledDataset.open(path)
    with DistilledFile(path) as file, pytest.raises(FormatError, match="no class labels"):
        file.images()


@pytest.mark.parametrize("codec", ["full", "hard"])
def test_who_wants_representations_is_told_that_there_are_none(tmp_path: Path, codec: str):
    path = tmp_path / "classes.h5"
    make_content(codec=codec).write(path)
    with pytest.raises(FormatError, match="holds class labels, no representations; give a file of"):
        RepresentationDataset.open(path)


def test_the_file_is_what_h5py_alone_says(tmp_path: Path):
    parts = random_set(stored=True)
    write_pairs(tmp_path / "a.h5", header_for(parts), parts)
    with h5py.File(tmp_path / "a.h5") as root:
        found = {}
        root.visititems(
            lambda name, item: (
                found.update({name: (item.dtype.str, item.shape)})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
        assert found == {
            "labels": ("<i4", (4,)),
            "views/rot90": ("|u1", (4, 4)),
            "image_mean": ("<f4", (3, 2, 2)),
            "image_basis": ("<f4", (3, 3, 2, 2)),
            "image_coefficients": ("<f4", (4, 3)),
            "target_mean": ("<f4", (3,)),
            "target_basis": ("<f4", (2, 3)),
            "target_coefficients": ("<f4", (4, 2)),
            "view_coefficients": ("<f4", (3, 4, 2)),
            "approximation/w0": ("<f4", (3, 2, 2)),
            "approximation/b0": ("<f4", (3, 2)),
            "approximation/w1": ("<f4", (3, 2, 2)),
            "approximation/b1": ("<f4", (3, 2)),
        }
        assert all(root[name].fletcher32 for name in found)
        assert json.loads(root["views"].attrs["ops"]) == ["rot90"]
        assert root.attrs["pixel_space"] == b"normalized" and root.attrs["image_count"] == 4


def test_a_set_that_stays_where_it_is_is_the_same_after_to(tmp_path: Path):
    for kind in KINDS:
        parts = made(kind)
        for name, values in stored_parts(parts.to("cpu")).items():
            assert torch.equal(values, stored_parts(parts)[name])
    assert isinstance(random_set().to("cpu"), FactoredSet)
