"""Plots of BatchNorm statistics, after Figures 3 and 4 of SC-DD (arXiv:2404.07976)."""

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scdd.bn_report import BatchNormLayer, Checkpoints
from scdd.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SOFTWARE = "scdd stats"
"""What the PNG says it was made by."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#56b4e9")
"""Told apart by colour-blind people too (Okabe and Ito, without those too pale for a line)."""
DASHES = ("-", "--", ":", "-.")
BINS = 60
MOST_NAMES = 60
"""Layer names that fit below an axis."""
LEFT_OUT = " (zeros are left out)"
"""A logarithmic axis has no place for them."""


def draw_statistics(path: Path, checkpoints: Checkpoints) -> None:
    """Write a PNG: running means on the left, running variances on the right.

    From the top: the channels of one layer (as Figure 4, of the first in a residual block; that is
    the second layer of a ResNet); the variance across channels of every layer; the distribution
    of the values of all layers.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 12.5 + 0.2 * len(checkpoints)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(3, 2)
    looks = itertools.cycle(itertools.product(DASHES, COLOURS))
    styles = [
        {"linestyle": dash, "color": colour}
        for dash, colour in itertools.islice(looks, len(checkpoints))
    ]
    for column, what in enumerate(("running mean", "running variance")):
        values = [[_values(layer, what) for layer in layers] for layers in checkpoints.values()]
        _draw_channels(grid[0, column], what, checkpoints, values, styles)
        _draw_layers(grid[1, column], what, checkpoints, values, styles)
        _draw_distribution(grid[2, column], what, values, styles)
    lines = grid[1, 0].get_lines()
    legend = figure.legend(lines, ["?"] * len(lines), loc="outside upper center", fontsize=10)
    for text, name in zip(legend.get_texts(), checkpoints, strict=True):
        text.set_parse_math(False)  # Given as labels, "_" would hide a name and "$" typeset it.
        text.set_text(name)
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # A box in its place is enough.
        figure.savefig(temporary, format="png", metadata={"Software": SOFTWARE})


Values = Sequence[Sequence[NDArray[np.float64]]]
"""By checkpoint and layer, the values [C] of the channels."""
Styles = Sequence[dict[str, Any]]


def _draw_channels(
    axis: "Axes", what: str, checkpoints: Checkpoints, values: Values, styles: Styles
) -> None:
    names = set()
    for layers, own, style in zip(checkpoints.values(), values, styles, strict=True):
        k = min(1, len(layers) - 1)
        names.add(layers[k].name)
        axis.plot(own[k], **style, linewidth=1.1, label=f"{own[k].var():.3g}")
    title = f"{what} of {names.pop()}" if len(names) == 1 else f"{what} of the second layer"
    axis.set_title(title, fontsize=11, parse_math=False)
    axis.set_xlabel("channel")
    axis.set_ylabel(what)
    axis.legend(
        title="variance\nacross\nchannels",
        fontsize=9,
        title_fontsize=9,
        loc="upper left",
        bbox_to_anchor=(1, 1),
    )


def _draw_layers(
    axis: "Axes", what: str, checkpoints: Checkpoints, values: Values, styles: Styles
) -> None:
    from matplotlib.ticker import MaxNLocator

    zeros = False
    for own, style in zip(values, styles, strict=True):
        spread = np.array([channels.var() for channels in own])
        zeros |= bool((spread == 0).any())
        spread[spread == 0] = np.nan
        axis.plot(spread, **style, linewidth=1.1, marker="o", markersize=3)
    axis.set_yscale("log")
    axis.grid(alpha=0.3)
    axis.set_title(f"variance of the {what} across channels, layer by layer", fontsize=11)
    axis.set_ylabel("variance across channels" + LEFT_OUT * zeros)
    names = {tuple(layer.name for layer in layers) for layers in checkpoints.values()}
    if len(names) == 1 and len(only := names.pop()) <= MOST_NAMES:
        axis.set_xticks(range(len(only)), only, rotation=90, fontsize=7)
        for label in axis.get_xticklabels():
            label.set_parse_math(False)
        axis.set_xlabel("BatchNorm layer")
    else:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("BatchNorm layer k, in the order of the network")


def _draw_distribution(axis: "Axes", what: str, values: Values, styles: Styles) -> None:
    """Draw the share of channels per bin; bins are as wide as they are far from 0."""
    joined = [np.abs(np.concatenate(own)) for own in values]
    together = np.concatenate(joined)
    shown = np.log(together[together > 0])
    low, high = (shown.min(), shown.max()) if shown.size else (0.0, 0.0)
    margin = (high - low) / BINS or 0.5
    bins = np.exp(np.linspace(low - margin, high + margin, BINS + 1))
    for own, style in zip(joined, styles, strict=True):
        axis.stairs(np.histogram(own, bins)[0] / len(own), bins, **style, linewidth=1.3)
    axis.set_xscale("log")
    size = f"absolute {what}" if what == "running mean" else what
    axis.set_title(f"distribution of the {size} over all channels of all layers", fontsize=11)
    axis.set_xlabel(size + LEFT_OUT * (shown.size < together.size))
    axis.tick_params(axis="x", which="minor", labelsize=7)
    axis.set_ylabel("share of channels")


def _values(layer: BatchNormLayer, what: str) -> NDArray[np.float64]:
    values = layer.running_mean if what == "running mean" else layer.running_var
    return values.numpy()
