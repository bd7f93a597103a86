"""Plot of how recovery went, after Figure 5 of SC-DD (arXiv:2404.07976)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scdd.files import replacing
from scdd.recovery.trajectories import Trajectories

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SOFTWARE = "scdd distill"
"""What the PNG says it was made by."""

COLOURS = {"class loss": "#0072b2", "matching loss (without alpha)": "#d55e00"}
HEAT = "viridis"
"""From dark to light also in grey, and for colour-blind people."""
FEW = 12
"""Iterations that are marked one by one; of a single one there would be no line to see."""


def draw_trajectories(path: Path, teachers: Sequence[tuple[str, Trajectories]]) -> None:
    """Write a PNG: for each named teacher the losses on the left, the distances on the right.

    Lines are medians over the batches, bands reach from the 10th to the 90th percentile. On the
    right are the means above and the variances below, in colours, as lines of a hundred layers
    could not be told apart; a column reaches from its iteration back to the one looked at before.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7 * len(teachers)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(len(teachers), squeeze=False)[:, 0]
    for part, (name, trajectories) in zip(parts, teachers, strict=True):
        axes = part.subplot_mosaic([["losses", "means"], ["losses", "variances"]])
        if len(teachers) > 1:
            part.suptitle(name)
        _draw_losses(axes["losses"], trajectories)
        for column, what in enumerate(("means", "variances")):
            axis = axes[what]
            _draw_distances(axis, trajectories.iterations, trajectories.distances[:, column])
            axis.set_title(f"distance of a batch's {what} from those of the teacher", fontsize=11)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": SOFTWARE})


def _draw_losses(axis: "Axes", trajectories: Trajectories) -> None:
    iterations, batches = trajectories.iterations, len(trajectories.class_loss)
    marker = "o" if len(iterations) < FEW else ""
    losses = (trajectories.class_loss, trajectories.matching_loss)
    bands = [np.nanpercentile(loss, (10, 50, 90), axis=0) for loss in losses]
    for (name, colour), (low, median, high) in zip(COLOURS.items(), bands, strict=True):
        axis.fill_between(iterations, low, high, color=colour, alpha=0.25, linewidth=0)
        axis.plot(iterations, median, color=colour, marker=marker, markersize=4, label=name)
    if (np.array(bands) > 0).all():
        axis.set_yscale("log")
    else:
        axis.set_yscale("symlog", linthresh=0.01)
    of = f"median and 10-90 % band of {batches} batches" if batches > 1 else "1 batch"
    axis.set_title(f"losses: {of}", fontsize=11)
    axis.set_xlabel("iteration")
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    axis.legend()


def _draw_distances(
    axis: "Axes", iterations: NDArray[np.int64], distances: NDArray[np.float64]
) -> None:
    """Draw distances [K, T], a row a layer, a column from each iteration back to the one before."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    known = np.where(distances > 0, distances, np.nan)
    if np.isfinite(known).any():
        edges = np.concatenate([[0], iterations])
        rows = np.arange(len(known) + 1) - 0.5
        heat = axis.pcolormesh(edges, rows, known, norm=LogNorm(), cmap=HEAT)
        axis.figure.colorbar(heat, ax=axis)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel("BatchNorm layer k")
    axis.set_xlabel("iteration")
