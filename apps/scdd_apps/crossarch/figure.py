"""Accuracy over parameters, one point an architecture (SC-DD, arXiv:2404.07976, Figure 8)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scdd.files import replacing
from scdd_apps.crossarch.compared import kind_title
from scdd_apps.crossarch.results import Mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""Told apart by colour-blind people too (Okabe and Ito)."""
MARKERS = "osD^"


def draw_accuracy_over_parameters(path: Path, means: Sequence[Mean], title: str) -> None:
    """Write the figure as a PNG."""
    figure = accuracy_over_parameters(means, title)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": "scdd-apps crossarch"})


def accuracy_over_parameters(means: Sequence[Mean], title: str) -> "Figure":
    """Draw top-1 % over parameters, a series for each kind of images and of labels or score.

    Bars are the standard deviation over seeds. Means without a score are left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    scored = [(mean, mean.top1) for mean in means if mean.top1 is not None]
    series = dict.fromkeys((mean.arm, mean.kind) for mean, _ in scored)
    for number, (arm, kind) in enumerate(series):
        own = [(mean, top1) for mean, top1 in scored if (mean.arm, mean.kind) == (arm, kind)]
        axes.errorbar(
            [mean.parameters for mean, _ in own],
            [top1 for _, top1 in own],
            [mean.sd for mean, _ in own],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
            linestyle="none",
            capsize=3,
            label=f"{arm}, {kind_title(kind)}",
        )
    tops = [(mean.arch, mean.parameters, top1 + mean.sd) for mean, top1 in scored]
    highest = {arch: (x, y) for arch, x, y in sorted(tops, key=lambda top: top[2])}
    for arch, point in highest.items():
        axes.annotate(
            arch,
            point,
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            parse_math=False,
        )
    axes.set(xscale="log", xlabel="parameters", ylabel="top-1 %")
    axes.margins(x=0.12, y=0.15)
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
