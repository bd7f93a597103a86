"""Pictures of distilled images: one row a class or view, one panel an arm."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scdd.distilled import DistilledDataset, RepresentationDataset
from scdd.files import replacing

MOST_CLASSES, MOST_IMAGES = 20, 10


def draw_gallery(path: Path, arms: dict[str, DistilledDataset]) -> None:
    """Write a PNG with the first images of every class of each file, side by side.

    Where those of one have no class, the images of all stand in the order of their file.
    """
    if any(bool((data.labels < 0).all()) for data in arms.values()):
        rows = {
            name: list(data.images[: MOST_CLASSES * MOST_IMAGES].split(MOST_IMAGES))
            for name, data in arms.items()
        }
        _draw(path, rows, [])
        return
    rows = {name: _rows_by_class(data) for name, data in arms.items()}
    _draw(path, rows, next(iter(arms.values())).classes[:MOST_CLASSES])


def draw_views(path: Path, arms: dict[str, RepresentationDataset]) -> None:
    """Write a PNG with the first images of each file, side by side, one row a view."""
    rows = {
        name: [data.pixels(view)[:MOST_IMAGES] for view in range(data.num_views)]
        for name, data in arms.items()
    }
    most = max(data.num_views for data in arms.values())
    _draw(path, rows, [f"view {view}" for view in range(most)])


def _draw(path: Path, rows: dict[str, list[Tensor]], names: Sequence[str]) -> None:
    """Write panels of rows of images, uint8 [n, 3, S, S] each; `names` are those of the rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = max(map(len, rows.values()))
    panels = {name: _panel(own, count) for name, own in rows.items()}
    height, side = next(iter(panels.values())).shape[0], next(iter(rows.values()))[0].shape[-1]
    width = sum(panel.shape[1] for panel in panels.values())
    cell = 12 / max(width, 1)
    figure = Figure(figsize=(12 + 1.2, cell * height + 0.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        1, len(panels), squeeze=False, width_ratios=[p.shape[1] for p in panels.values()]
    )[0]
    for number, (axis, (name, panel)) in enumerate(zip(axes, panels.items(), strict=True)):
        axis.imshow(panel, interpolation="nearest")
        axis.set_title(name, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
        if number == 0:
            centres = (np.arange(len(names)) + 0.5) * (side + 1)
            axis.set_yticks(centres, [_short(name) for name in names], fontsize=8)
        for spine in axis.spines.values():
            spine.set_visible(False)
        axis.tick_params(length=0)
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box in its place is enough
        figure.savefig(temporary, format="png")


def _rows_by_class(data: DistilledDataset) -> list[Tensor]:
    """The first images of the first classes, uint8 [n, 3, S, S] each."""
    classes = min(MOST_CLASSES, len(data.classes))
    return [data.images[data.labels == label][:MOST_IMAGES] for label in range(classes)]


def _panel(rows: list[Tensor], count: int) -> NDArray[np.uint8]:
    """Tile [count * (S + 1), images * (S + 1), 3]: white between and where no image is."""
    columns, pitch = max(1, *map(len, rows)), rows[0].shape[-1] + 1
    canvas = np.full((count * pitch, columns * pitch, 3), 255, np.uint8)
    for number, row in enumerate(rows):
        for column, image in enumerate(row.cpu().permute(0, 2, 3, 1).numpy()):
            top, left = number * pitch, column * pitch
            canvas[top : top + pitch - 1, left : left + pitch - 1] = image
    return canvas


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "."
