"""docs/format.md is true: its tables name what files hold, and its example reads one."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from scdd.augment.randaugment import OPERATIONS
from scdd.config.relabel import RandAugmentConfig, RelabelConfig
from scdd.distilled import CODECS, DistilledFile
from scdd.distilled.format import NUMBERS, STRUCTURES, TEXTS
from scdd.distilled.records import PARAMETERS

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


@pytest.mark.parametrize("flip", [True, False])  # False: as the preset of digits has it.
def test_the_example_reads_a_file_without_scdd(content, tmp_path, capsys, flip: bool):
    path = tmp_path / "distilled.h5"
    content(RelabelConfig(mix="cutmix", flip=flip), classes=5).write(path)
    example = section("Reading it without scdd").split("```python\n")[1].split("```")[0]
    assert "scdd" not in re.sub(r'b"scdd"', "", example.replace("runs/digits", ""))
    example = example.replace("runs/digits/distilled.h5", str(path))
    found: dict = {}
    exec(example, found)
    assert "class 0" in capsys.readouterr().out
    with DistilledFile(path) as file:
        assert np.array_equal(found["images"], file.images().numpy() / np.float32(255))
        assert np.array_equal(found["labels"], file.labels().numpy())
        assert np.array_equal(found["logits"], file.logits(0)[0].numpy())
        parameters = file.views.parameters
        crop = [found[name] for name in ("top", "left", "height", "width")]
        assert crop == parameters["crop"][0, 0].tolist()
        assert found["flipped"] == (parameters["flip"][0, 0] if flip else 0)
