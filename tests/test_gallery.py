"""The gallery: a picture with one row a class and one panel a file."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scdd.distilled import (
    DenseSet,
    DistilledDataset,
    Header,
    RepresentationDataset,
    write_distilled,
    write_pairs,
)
from scdd.gallery import MOST_CLASSES, MOST_IMAGES, draw_gallery, draw_views
from tests.conftest import FinishedRun
from tests.distilled.random_sets import header_for

SIDE = 8


def colour(label: int, images: int) -> tuple[int, int, int]:
    """A colour of its own for every class, and for every count of images per class."""
    return 10 + 11 * label, 30 * (label % 7) + 20, 40 + 15 * images


def write_plain(path: Path, classes: int, ipc: int) -> DistilledDataset:
    """A distilled file whose images are plain, in the colour of their class."""
    labels = torch.arange(classes * ipc) % classes
    images = torch.zeros(classes * ipc, 3, SIDE, SIDE, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:] = torch.tensor(colour(label, ipc))[:, None, None]
    header = Header(
        kind="dense",
        target_kind="none",
        target_dim=0,
        method="scdd",
        recipe="custom",
        dataset="plain",
        class_names=tuple(f"a class with the number {label}" for label in range(classes)),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        image_size=SIDE,
        ipc=ipc,
        budget_n=None,
        seed=0,
        config={},
        versions={},
        teacher=None,
    )
    write_distilled(path, header, images, labels.int())
    return DistilledDataset.open(path)


def places(picture: np.ndarray, wanted: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns [2, P] of the pixels of exactly this colour."""
    return np.stack(np.nonzero((picture == np.array(wanted)).all(axis=2)))


def test_classes_stand_in_rows_and_files_in_panels_from_left_to_right(tmp_path: Path):
    arms = {f"ipc {k}": write_plain(tmp_path / f"{k}.h5", 5, k) for k in (1, 3)}
    draw_gallery(tmp_path / "gallery.png", arms)
    with Image.open(tmp_path / "gallery.png") as opened:
        assert opened.format == "PNG"
        picture = np.asarray(opened.convert("RGB"))
    assert min(picture.shape[:2]) > 100
    right_of_last_panel = 0
    for ipc in (1, 3):
        boxes = [places(picture, colour(label, ipc)) for label in range(5)]
        assert all(box.shape[1] > 50 * ipc for box in boxes), "every class is seen"
        assert all(above[0].max() < below[0].min() for above, below in pairwise(boxes))
        lefts = {box[1].min() for box in boxes}
        assert len(lefts) == 1, "rows start in one line"
        assert lefts.pop() > right_of_last_panel
        right_of_last_panel = max(box[1].max() for box in boxes)
    # Three images in a row are about three times as wide as one.
    widths = [np.ptp(places(picture, colour(0, ipc))[1]) for ipc in (1, 3)]
    assert widths[1] == pytest.approx(3.3 * widths[0], rel=0.2)


def test_beside_images_of_no_class_all_stand_in_the_order_of_their_file(tmp_path: Path):
    """Colours tell the images of both files apart; classes take turns, so order shows."""
    plain = write_plain(tmp_path / "plain.h5", 3, 5)
    header = dataclasses.replace(plain.header, ipc=None, budget_n=len(plain), digest="")
    none = torch.full((len(plain),), -1)
    write_distilled(tmp_path / "none.h5", header, plain.images, none)
    arms = {"none": DistilledDataset.open(tmp_path / "none.h5"), "plain": plain}
    draw_gallery(tmp_path / "none.png", arms)
    with Image.open(tmp_path / "none.png") as opened:
        picture = np.asarray(opened.convert("RGB"))
    half = picture.shape[1] // 2
    halves = [picture[:, :half], picture[:, half:]]
    for part in halves:
        boxes = [places(part, colour(label, 5)) for label in range(3)]
        # Of 15 images in rows of 10, the first row ends with class 0 and the last with class 2.
        tops = [box[0].min() for box in boxes]
        assert len(set(tops)) == 1
        upper = [box[1][box[0] < tops[0] + 5] for box in boxes]
        assert max(upper[0]) > max(upper[2]) > max(upper[1])
        lower = [box[1][box[0] > box[0].max() - 5] for box in boxes]
        assert max(lower[2]) > max(lower[1]) > max(lower[0])
    counts = [[places(part, colour(label, 5)).shape[1] for label in range(3)] for part in halves]
    assert counts[0] == pytest.approx(counts[1], rel=0.05)


def test_of_many_classes_and_images_the_first_are_shown(tmp_path: Path):
    data = write_plain(tmp_path / "many.h5", MOST_CLASSES + 3, MOST_IMAGES + 2)
    draw_gallery(tmp_path / "gallery.png", {"many": data})
    with Image.open(tmp_path / "gallery.png") as opened:
        picture = np.asarray(opened.convert("RGB"))
    seen = [
        places(picture, colour(label, MOST_IMAGES + 2)).size > 0
        for label in range(MOST_CLASSES + 3)
    ]
    assert seen == [True] * MOST_CLASSES + [False] * 3
    columns = places(picture, colour(0, MOST_IMAGES + 2))[1]
    blocks = 1 + int((np.diff(np.unique(columns)) > 1).sum())
    assert blocks == MOST_IMAGES


def test_views_stand_in_rows_and_what_has_fewer_of_them_leaves_white(tmp_path: Path):
    """Two colours in the upper left corner of grey images, which turns move."""
    arms = {}
    for name, turns in (("one", (0,)), ("three", (0, 1, 2))):
        pixels = torch.full((2, 3, SIDE, SIDE), 128, dtype=torch.uint8)
        pixels[:, :, : SIDE // 2, : SIDE // 2] = torch.tensor(colour(3, 1))[:, None, None]
        parts = DenseSet(turns, pixels, torch.zeros(len(turns), 2, 5))
        write_pairs(tmp_path / f"{name}.h5", header_for(parts), parts)
        arms[name] = RepresentationDataset.open(tmp_path / f"{name}.h5")
    draw_views(tmp_path / "views.png", arms)
    with Image.open(tmp_path / "views.png") as opened:
        picture = np.asarray(opened.convert("RGB"))
    half = picture.shape[1] // 2
    corners = [places(part, colour(3, 1)) for part in (picture[:, :half], picture[:, half:])]
    assert corners[1].shape[1] == pytest.approx(3 * corners[0].shape[1], rel=0.1)
    grey = places(picture[:, half:], (128, 128, 128))
    tops = [corners[1][0].min(), grey[0].min()]
    assert tops[0] == tops[1], "not turned, it is above"
    assert corners[1][0].max() == grey[0].max(), "turned by 90 or 180 degrees, it is below"


def test_a_run_leaves_a_picture_of_its_arms(finished_run: FinishedRun):
    with Image.open(finished_run.path / "gallery.png") as picture:
        picture.load()
        assert picture.format == "PNG" and picture.width > 1000 and picture.height > 500
        assert np.asarray(picture.convert("L")).std() > 10
