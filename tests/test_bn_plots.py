"""The picture of BatchNorm statistics: every checkpoint is seen, odd ones break nothing."""

import warnings
from pathlib import Path

import matplotlib.colors
import numpy as np
import pytest
import torch
from PIL import Image

from scdd.bn_plots import COLOURS, MOST_NAMES, draw_statistics
from scdd.bn_report import BatchNormLayer


def layers(count: int, channels: int, scale: float = 1.0, seed: int = 0) -> list[BatchNormLayer]:
    draw = torch.Generator().manual_seed(seed)
    return [
        BatchNormLayer(
            f"block{k}.bn",
            scale * torch.randn(channels, generator=draw, dtype=torch.float64),
            scale**2 * torch.rand(channels, generator=draw, dtype=torch.float64),
        )
        for k in range(count)
    ]


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        assert opened.format == "PNG" and opened.width > 1000 and opened.height > 1000
        return np.asarray(opened.convert("RGB"))


def pixels(image: np.ndarray, colour: str, tolerance: int = 0) -> int:
    rgb = np.round(255 * np.array(matplotlib.colors.to_rgb(colour)))
    return int((np.abs(image - rgb) <= tolerance).all(axis=2).sum())


def test_every_checkpoint_has_a_colour_of_its_own(tmp_path: Path):
    shown = {str(seed): layers(6, 16, seed=seed) for seed in range(3)}
    draw_statistics(tmp_path / "p.png", shown)
    image = picture(tmp_path / "p.png")
    counts = [pixels(image, colour) for colour in COLOURS if colour != "#000000"]
    assert min(counts[:3]) > 500 and max(counts[3:]) == 0
    # In each of the six panels: two columns, three rows.
    for row in np.array_split(image, 3):
        for panel in np.array_split(row, 2, axis=1):
            assert min(pixels(panel, colour, tolerance=20) for colour in COLOURS[:3]) > 50


@pytest.mark.parametrize(
    "shown",
    [
        {"_$\\frac$.pt": layers(2, 8), "\N{REPLACEMENT CHARACTER}\u4e2d.pt": layers(3, 4)},
        {"untrained": [BatchNormLayer("bn", torch.zeros(4), torch.ones(4))] * 3},
        {"dead": [BatchNormLayer("$\\frac$", torch.zeros(1), torch.zeros(1))]},
        {"tiny": layers(2, 4, 1e-18), "huge": layers(2, 4, 1e18)},
        {"deep": layers(MOST_NAMES + 1, 4)},
        {str(number): layers(2, 4, seed=number) for number in range(30)},
    ],
    ids=["odd names", "untrained", "dead", "far apart", "deep", "many"],
)
def test_odd_checkpoints_are_drawn_without_a_warning(
    shown: dict[str, list[BatchNormLayer]], tmp_path: Path
):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_statistics(tmp_path / "p.png", shown)
    picture(tmp_path / "p.png")
