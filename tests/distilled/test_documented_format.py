"""docs/format.md is true: its tables name what files hold, and its example reads one."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from scdd.augment.randaugment import OPERATIONS
from scdd.config.relabel import RandAugmentConfig, RelabelConfig
from scdd.distilled import CODECS, DistilledFile, RepresentationDataset, write_pairs
from scdd.distilled.format import MORE_NUMBERS, MORE_TEXTS, NUMBERS, STRUCTURES, TEXTS
from scdd.distilled.records import PARAMETERS
from tests.distilled.random_sets import header_for, random_dense, random_set

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "format.md").read_text(encoding="utf-8")

SETTINGS = [
    RelabelConfig(mix="cutmix", teacher_bn="batch", group=3),
    RelabelConfig(mix="mixup", crop="padded", randaugment=RandAugmentConfig()),
]


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    lines = [line for line in section(title).splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def documented(title: str) -> dict[str, str]:
    """First cell to second, for every name of the first."""
    return {name: cells[1] for cells in rows(title) for name in re.findall(r"`([^`]+)`", cells[0])}


def test_every_attribute_is_documented_with_its_type(content, tmp_path):
    content().write(tmp_path / "a.h5")
    found = documented("Attributes of /")
    with h5py.File(tmp_path / "a.h5") as file:
        assert set(found) == set(file.attrs)
    for names, kind in ((TEXTS, "text"), (NUMBERS, "integer"), (STRUCTURES, "JSON")):
        assert {found[name] for name in names} == {kind}


@pytest.mark.parametrize("cfg", SETTINGS)
def test_every_dataset_is_documented_with_its_dtype(content, tmp_path, cfg: RelabelConfig):
    content(cfg).write(tmp_path / "a.h5")
    found = documented("Datasets")
    with h5py.File(tmp_path / "a.h5") as file:
        names = ["images", "labels", *(f"views/{name}" for name in file["views"])]
        for name in names:
            assert file[name].dtype.name in found[name].split(" or "), name
    assert {name.removeprefix("views/") for name in found if "/" in name} == set(PARAMETERS)


def test_every_operation_of_randaugment_is_documented_with_its_number_and_range():
    said = {cells[0].strip("`"): cells[1:3] for cells in rows("RandAugment")}
    known = {}
    for number, (name, operation) in enumerate(OPERATIONS.items()):
        low, high = operation.low, operation.high
        ends = ("-S", "S") if high is None else (low, high)
        known[name] = [str(number), "0" if low == high else f"{ends[0]} .. {ends[1]}"]
    assert said == known


@pytest.mark.parametrize(
    ("codec", "top"), [("full", {}), ("int8", {}), ("int4", {}), ("topk", {"top": 2})]
)
def test_every_array_of_a_codec_is_documented_with_its_dtype(content, tmp_path, codec, top):
    content(RelabelConfig(), classes=5, codec=codec, **top).write(tmp_path / "a.h5")
    said = {cells[0].strip("`"): cells[1] for cells in rows("Codecs")}
    assert set(said) == set(CODECS)
    with h5py.File(tmp_path / "a.h5") as file:
        assert set(file["soft_labels"]) == set(re.findall(r"`(\w+)`", said[codec]))
        for values in file["soft_labels"].values():
            assert values.dtype.name in said[codec]


def run_example(number: int, named: str, path: Path) -> dict:
    """Run an example of the last section on another file than the one it names; its variables."""
    example = section("Reading it without scdd").split("```python\n")[number].split("```")[0]
    example = example.replace(named, str(path))
    assert not re.search(r"^(import|from) .*(scdd|torch)", example, re.MULTILINE)
    found: dict = {}
    exec(example, found)
    return found


@pytest.mark.parametrize("flip", [True, False])  # False: as the preset of digits has it.
def test_the_example_reads_a_file_without_scdd(content, tmp_path, capsys, flip: bool):
    path = tmp_path / "distilled.h5"
    content(RelabelConfig(mix="cutmix", flip=flip), classes=5).write(path)
    found = run_example(1, "runs/digits/distilled.h5", path)
    assert "class 0" in capsys.readouterr().out
    with DistilledFile(path) as file:
        assert np.array_equal(found["images"], file.images().numpy() / np.float32(255))
        assert np.array_equal(found["labels"], file.labels().numpy())
        assert np.array_equal(found["logits"], file.logits(0)[0].numpy())
        parameters = file.views.parameters
        crop = [found[name] for name in ("top", "left", "height", "width")]
        assert crop == parameters["crop"][0, 0].tolist()
        assert found["flipped"] == (parameters["flip"][0, 0] if flip else 0)


@pytest.mark.parametrize("turns", [(0,), (0, 3, 1)])
@pytest.mark.parametrize("predicted", [True, False])
def test_the_second_example_decodes_a_factored_file_without_scdd(
    tmp_path, capsys, predicted: bool, turns: tuple[int, ...]
):
    parts = random_set(count=3, side=3, size=8, turns=turns, approximation=predicted, stored=True)
    path = tmp_path / "distilled.h5"
    write_pairs(path, header_for(parts), parts)
    found = run_example(2, "runs/boost/distilled.h5", path)
    data = RepresentationDataset.open(path)
    for view in range(len(turns)):
        assert np.allclose(found["images"][view], data.images(view), atol=1e-5)
        assert np.allclose(found["targets"][view], data.targets(view), atol=1e-5)
    assert "(3, 3, 8, 8) (3, 3)" in capsys.readouterr().out


def test_every_dataset_and_attribute_of_representations_is_documented(tmp_path):
    said = {name: cells[1:3] for cells in rows("Representations") for name in names_in(cells[0])}
    factored, dense = random_set(stored=True), random_dense()
    sizes = {"m": 4, "S": 4, "V": 4, "A": 3, "U": 3, "W": 2, "d": 3, "h": 2, "s": 2}
    for kind, parts in (("factored", factored), ("dense", dense)):
        write_pairs(tmp_path / f"{kind}.h5", header_for(parts), parts)
        with h5py.File(tmp_path / f"{kind}.h5") as file:
            assert set(file.attrs) == {*documented("Attributes of /"), *MORE_TEXTS, *MORE_NUMBERS}
            found = {}
            file.visititems(
                lambda name, item, found=found: (
                    found.update({name: item.shape}) if isinstance(item, h5py.Dataset) else None
                )
            )
        assert {found.pop(name) for name in ("labels", "views/rot90")} == {(4,), (4, 4)}
        assert set(found) == {name for name, cells in said.items() if cells[0] == kind}
        for name, shape in found.items():
            axes = said[name][1].strip("[]").split(", ")
            assert [sizes.get(axis) or int(axis) for axis in axes] == list(shape), name
    assert {said[name][0] for name in MORE_TEXTS} == {"text"}
    assert {said[name][0] for name in MORE_NUMBERS} == {"integer"}


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)
