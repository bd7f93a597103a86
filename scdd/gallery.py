"""Pictures of distilled images: one row a class, one panel an arm."""

import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scdd.distilled import DistilledDataset
from scdd.files import replacing

MOST_CLASSES, MOST_IMAGES = 20, 10


def draw_gallery(path: Path, arms: dict[str, DistilledDataset]) -> None:
    """Write a PNG with the first images of every class of each file, side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {name: _panel(data) for name, data in arms.items()}
    rows = next(iter(panels.values())).shape[0]
    width = sum(panel.shape[1] for panel in panels.values())
    cell = 12 / max(width, 1)
    figure = Figure(figsize=(12 + 1.2, cell * rows + 0.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        1, len(panels), squeeze=False, width_ratios=[p.shape[1] for p in panels.values()]
    )[0]
    side = next(iter(arms.values())).image_size
    classes = next(iter(arms.values())).classes[:MOST_CLASSES]
    for number, (axis, (name, panel)) in enumerate(zip(axes, panels.items(), strict=True)):
        axis.imshow(panel, interpolation="nearest")
        axis.set_title(name, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
        if number == 0:
            centres = (np.arange(len(classes)) + 0.5) * (side + 1)
            axis.set_yticks(centres, [_short(name) for name in classes], fontsize=8)
        for spine in axis.spines.values():
            spine.set_visible(False)
        axis.tick_params(length=0)
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box in its place is enough
        figure.savefig(temporary, format="png")


def _panel(data: DistilledDataset) -> NDArray[np.uint8]:
    """Tile [classes * (S + 1), images * (S + 1), 3]: a row a class, a white pixel between."""
    columns = min(MOST_IMAGES, int(torch.bincount(data.labels.clamp(min=0)).max()))
    classes = min(MOST_CLASSES, len(data.classes))
    pitch = data.image_size + 1
    canvas = np.full((classes * pitch, columns * pitch, 3), 255, np.uint8)
    for label in range(classes):
        members = data.images[data.labels == label][:columns]
        for column, image in enumerate(members.cpu().permute(0, 2, 3, 1).numpy()):
            top, left = label * pitch, column * pitch
            canvas[top : top + pitch - 1, left : left + pitch - 1] = image
    return canvas


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "."
