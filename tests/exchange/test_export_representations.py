"""`scdd export` and `scdd inspect` of images with representations."""

import io
import json
import os
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from scdd.distilled import Pairs, RepresentationDataset, verify, write_pairs
from tests.cli.conftest import Run, refused
from tests.conftest import Command
from tests.distilled.conftest import make_content
from tests.distilled.random_sets import header_for, random_dense, random_set
from tests.exchange.conftest import pixels_of
from tests.exchange.test_dataset_card import parsed

SETS: dict[str, Pairs] = {
    "factored": random_set(count=3, turns=(0, 1, 2), size=6),
    "dense": random_dense(pixels=torch.uint8),
}


def written(folder: Path, kind: str) -> Path:
    write_pairs(folder / "d.h5", header_for(SETS[kind]), SETS[kind])
    return folder / "d.h5"


def wanted_pixels(parts: Pairs) -> list[np.ndarray]:
    """Every view of every image in turn, uint8 [3, S, S], by numpy."""
    mean, std = (np.reshape(v, (3, 1, 1)) for v in ((0.5, 0.4, 0.3), (0.2, 0.2, 0.25)))
    own: list[np.ndarray] = []
    for image in parts.images().numpy():
        if image.dtype != np.uint8:
            image = np.rint(np.clip((image * std + mean) * 255, 0, 255)).astype(np.uint8)
        own.append(image)
    return [np.rot90(image, turn, (1, 2)) for turn in parts.turns for image in own]


def wanted_targets(parts: Pairs) -> Tensor:
    return torch.cat([parts.targets(view) for view in range(parts.num_views)])


@pytest.mark.parametrize("kind", SETS)
def test_an_image_folder_has_every_view_in_turn_and_its_target_in_the_same_row(
    kind: str, warm_command: Run, tmp_path: Path
):
    written(tmp_path, kind)
    done = warm_command("export", "d.h5", "--format", "imagefolder", "--out", "out", "--with-file")
    assert done.returncode == 0, done.stderr
    parts, out = SETS[kind], tmp_path / "out"
    assert sorted(os.listdir(out)) == ["README.md", "distilled.h5", "targets.npy", "train"]
    assert (out / "distilled.h5").read_bytes() == (tmp_path / "d.h5").read_bytes()
    files = sorted((out / "train" / "images").iterdir())
    assert [file.name for file in files] == [f"{k:05}.png" for k in range(len(files))]
    for file, pixels in zip(files, wanted_pixels(parts), strict=True):
        assert (pixels_of(file) == pixels).all()
    targets = np.load(out / "targets.npy", allow_pickle=False)
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets, wanted_targets(parts), rtol=1e-5, atol=1e-6)
    front, tokens = parsed((out / "README.md").read_text())
    assert front["task_categories"] == ["image-feature-extraction"]
    text = " ".join(token.content for token in tokens)
    assert f"{len(files)} of {parts.image_size} x {parts.image_size} px" in text
    assert "Row k of `targets.npy` is the target of image k" in text


@pytest.mark.parametrize("kind", SETS)
def test_parquet_has_the_target_in_a_column(kind: str, warm_command: Run, tmp_path: Path):
    written(tmp_path, kind)
    done = warm_command("export", "d.h5", "--format", "parquet", "--out", "out")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "out" / "data" / "train.parquet")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    value = {"dtype": "float32", "_type": "Value"}
    target = {"feature": value, "length": 3, "_type": "Sequence"}
    assert features == {"image": {"_type": "Image"}, "target": target}
    found = np.array(table["target"].to_pylist(), dtype=np.float32)
    np.testing.assert_allclose(found, wanted_targets(SETS[kind]), rtol=1e-5, atol=1e-6)
    images = table["image"].to_pylist()
    for image, pixels in zip(images, wanted_pixels(SETS[kind]), strict=True):
        with Image.open(io.BytesIO(image["bytes"])) as opened:
            assert (np.asarray(opened).transpose(2, 0, 1) == pixels).all()


def test_dense_writes_what_a_factored_file_decodes(warm_command: Run, tmp_path: Path):
    written(tmp_path, "factored")
    done = warm_command("export", "d.h5", "--format", "dense", "--out", "out")
    assert done.returncode == 0, done.stderr
    made = tmp_path / "out" / "distilled.h5"
    assert verify(made) == []
    with h5py.File(made) as root:
        assert root["images"].shape == (3, 3, 6, 6) and root["targets"].shape == (3, 3, 3)
        # 3 images and 9 targets; a plain image with its target takes 111.
        assert int(root.attrs["budget_n"]) == -(-(3 * 108 + 9 * 3) // 111)
    one, other = RepresentationDataset.open(tmp_path / "d.h5"), RepresentationDataset.open(made)
    every = torch.arange(9)
    torch.testing.assert_close(other.batch(every), one.batch(every), rtol=1e-6, atol=1e-6)


def test_what_cannot_be_exported_is_refused(warm_command: Run, tmp_path: Path):
    written(tmp_path, "dense")
    export = ["export", "d.h5", "--out", "out", "--format"]
    refused(warm_command(*export, "zip"), "--format zip: choose imagefolder, parquet, dense")
    refused(warm_command(*export, "dense"), "d.h5 is dense already; choose imagefolder or parquet")
    written(tmp_path, "factored")
    refused(warm_command(*export, "dense", "--with-file"), "--with-file", "leave one out")
    make_content().write(tmp_path / "d.h5")
    refused(warm_command(*export, "dense"), "--format dense: choose imagefolder or parquet")
    assert not (tmp_path / "out").exists()


def test_class_label_commands_refuse_representations_in_one_sentence(
    warm_command: Run, apps_command: Command, tmp_path: Path
):
    written(tmp_path, "factored")
    said = "d.h5: holds representations as targets, no class labels; "
    for labels in ("soft", "hard"):
        refused(warm_command("evaluate", "d.h5", "--arch", "resnet8", "--labels", labels), said)
    refused(apps_command("prune", "d.h5", "--arch", "vgg11"), said)
    # crossarch takes such files, but not of so few pixels.
    refused(apps_command("crossarch", "d.h5"), "images have 6 px, but networks want 8 or more")
    refused(warm_command("inspect", "d.h5", "--teacher", "x"), "holds no soft labels; leave")


def test_inspect_shows_the_parts_and_the_bill_of_a_factored_file(warm_command: Run, tmp_path: Path):
    written(tmp_path, "factored")
    shown = warm_command("inspect", "d.h5", "--verify").stdout
    # 3 x 2 x 2 values a basis image: (12 + 3) means, 3 x 12 + 2 x 3 bases, 3 x (3 + 2)
    # coefficients, and 2 networks of 2 x 2 + 2 + 2 x 2 + 2 weights.
    taken, allowed = 15 + 42 + 15 + 24, 111
    basis = SETS["factored"].image_basis.double().numpy()
    error = np.abs(basis @ basis.T - np.eye(3)).max()
    for words in (
        "dataset      digits, without classes",
        "images       3 of 6 px, normalized pixels, factored",
        "views        3 views an image, turned by 0, 90, 180 degrees",
        "targets      representations of length 3, those of turned views predicted, 2 hidden units",
        f"bases        3 of 2 px for images, gram error {error:.1e}; 2 for targets",
        f"{taken} numbers, {100 * taken / allowed:.1f} % of the {allowed} of 1 raw images",
        f"({2 * taken} bytes in half precision)",
        "resnet18, barlow_twins",
        "verified",
    ):
        assert words in shown, shown


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (random_dense(), "length 3, stored"),
        (random_set(approximation=False, stored=True), "views stored as coefficients"),
        (random_set(stored=True), "2 hidden units, stored beside to measure what that costs"),
        (random_set(turns=(0,)), "1 view an image, turned by 0 degrees"),
    ],
)
def test_inspect_says_where_targets_come_from(warm_command: Run, tmp_path: Path, parts, said: str):
    write_pairs(tmp_path / "d.h5", header_for(parts), parts)
    assert said in warm_command("inspect", "d.h5").stdout


def test_a_flipped_bit_is_found_by_inspect_verify(warm_command: Run, tmp_path: Path):
    path = written(tmp_path, "factored")
    content = bytearray(path.read_bytes())
    place = content.find(SETS["factored"].target_coefficients.numpy().tobytes())
    assert place > 0
    content[place + 1] ^= 1
    path.write_bytes(content)
    refused(warm_command("inspect", "d.h5", "--verify"), "d.h5")
