"""The picture of a recovery: each quantity is seen where it belongs, odd ones break nothing."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from PIL import Image

from scdd.recovery.plots import COLOURS, HEAT, draw_trajectories
from scdd.recovery.trajectories import Trajectories


def trajectories(layers: int, batches: int, points: int, seed: int = 0) -> Trajectories:
    rng = np.random.default_rng(seed)
    falling = np.exp(-np.arange(points) / points)
    return Trajectories(
        50 * np.arange(1, points + 1),
        falling * rng.uniform(1, 3, (batches, 1)),
        50 * falling * rng.uniform(1, 3, (batches, 1)),
        falling * rng.uniform(1, 9, (layers, 2, 1)),
    )


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        assert opened.format == "PNG" and opened.size == (1430, 770)
        return np.asarray(opened.convert("RGB")).astype(int)


def rows(image: np.ndarray, colour: tuple[float, ...]) -> np.ndarray:
    """The row of every pixel of a colour, of 0 to 1."""
    return (np.abs(image - 255 * np.array(colour)) <= 2).all(axis=2).nonzero()[0]


def test_losses_are_lines_on_the_left_the_larger_one_above(tmp_path: Path):
    draw_trajectories(tmp_path / "p.png", [("a", trajectories(4, 10, 20))])
    left = np.array_split(picture(tmp_path / "p.png"), 2, axis=1)[0][150:]  # below the legend
    class_loss, matching_loss = (rows(left, to_rgb(colour)) for colour in COLOURS.values())
    assert min(len(class_loss), len(matching_loss)) > 300
    assert matching_loss.max() < class_loss.min(), "the matching loss is 50 times the class loss"


@pytest.mark.parametrize("depth", [4, 104])
def test_every_layer_is_a_row_of_the_colour_of_its_distance(depth: int, tmp_path: Path):
    drawn = trajectories(depth, 2, 3)
    # All layers are at the top of the scale, but one row that is at its bottom.
    drawn.distances[:] = 100.0
    drawn.distances[1, 0], drawn.distances[depth - 2, 1] = 1.0, 1.0
    draw_trajectories(tmp_path / "p.png", [("a", drawn)])
    right = np.array_split(picture(tmp_path / "p.png"), 2, axis=1)[1][:, :600]  # no colour bars
    low, high = (colormaps[HEAT](edge)[:3] for edge in (0.0, 1.0))
    halves = np.array_split(right, 2)
    for half, position in zip(halves, ((depth - 1.5) / depth, 1.5 / depth), strict=True):
        dark, bright = rows(half, low), rows(half, high)
        top, bottom = bright.min(), bright.max() + 1
        assert (dark.mean() + 0.5 - top) / (bottom - top) == pytest.approx(position, abs=0.01)
        assert len(np.unique(dark)) == pytest.approx((bottom - top) / depth, abs=1.5)


def test_a_single_iteration_is_seen(tmp_path: Path):
    draw_trajectories(tmp_path / "p.png", [("a", trajectories(3, 1, 1))])
    left = picture(tmp_path / "p.png")[:, 400:700]  # beside the legend
    for colour in COLOURS.values():
        assert len(rows(left, to_rgb(colour))) > 5


def odd(**changes: object) -> Trajectories:
    return trajectories(3, 4, 6)._replace(**changes)  # type: ignore[arg-type]


holes = np.where(np.eye(4, 6) > 0, np.nan, 1.0)


@pytest.mark.parametrize(
    "drawn",
    [
        odd(matching_loss=np.linspace(-80, 80, 24).reshape(4, 6)),
        odd(class_loss=np.zeros((4, 6))),
        odd(class_loss=holes, matching_loss=holes),
        odd(distances=np.zeros((3, 2, 6))),
        odd(distances=np.full((1, 2, 6), 2.0)),
        odd(distances=np.where(np.arange(36).reshape(3, 2, 6) % 5, np.nan, 1e-12)),
        odd(distances=np.empty((0, 2, 6))),
    ],
    ids=["negative", "zeros", "holes", "no distance", "one layer", "missing", "no layer"],
)
def test_odd_trajectories_are_drawn_without_a_warning(drawn: Trajectories, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_trajectories(tmp_path / "p.png", [("a", drawn)])
    picture(tmp_path / "p.png")


def test_every_teacher_has_a_part_of_its_own(tmp_path: Path):
    drawn = trajectories(4, 10, 20)
    lower = drawn._replace(matching_loss=drawn.class_loss / 50)
    draw_trajectories(tmp_path / "p.png", [("a", drawn), ("b", lower)])
    with Image.open(tmp_path / "p.png") as opened:
        assert opened.size == (1430, 1540)
        image = np.asarray(opened.convert("RGB")).astype(int)
    for part, first_above in zip(np.array_split(image, 2), (False, True), strict=True):
        left = np.array_split(part, 2, axis=1)[0][:, :500]  # beside the legend
        class_loss, matching_loss = (rows(left, to_rgb(colour)) for colour in COLOURS.values())
        assert (class_loss.mean() < matching_loss.mean()) == first_above
