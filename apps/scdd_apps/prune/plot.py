"""The picture of a sweep: accuracy over multiply-accumulates."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from scdd.files import replacing
from scdd_apps.prune.results import Row
from scdd_apps.prune.variants import CONTROLS, SCRATCH


def draw_sweep(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Write a PNG with one line per images and choice of channels; bars are one sd over seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for arm, channels in dict.fromkeys((row["arm"], row["channels"]) for row in rows):
        # Lines start at the network with nothing removed, but for new weights there is none.
        own = [
            row
            for row in rows
            if row["arm"] == arm
            and (row["channels"] == channels or (not row["ratio"] and channels != SCRATCH))
        ]
        points = [
            [row for row in own if row["ratio"] == ratio]
            for ratio in sorted({row["ratio"] for row in own})
        ]
        scores = [[row["top1"]["fine-tuned"] for row in point] for point in points]
        axes.errorbar(
            [fmean(row["macs"] for row in point) for point in points],
            [fmean(each) for each in scores],
            [stdev(each) if len(each) > 1 else 0.0 for each in scores],
            label=f"{channels}, {arm}",
            linestyle="--" if channels in CONTROLS else "-",
            marker="o",
            markersize=4,
            capsize=2,
        )
    axes.set_xscale("log")
    axes.set_xlabel("multiply-accumulates of one image")
    axes.set_ylabel("top-1 %")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
