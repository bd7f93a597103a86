"""How the cost of stages grows with images, classes, iterations, views and processes.

    python benchmarks/scaling.py [AXIS]... [--rounds 3] [--factor 1] [--scratch DIR] [--out FILE]
        [--plot PNG] [--device cpu]

Every point is a whole `scdd distill` of a tiny net on random images that are made for it, in a
process of its own (on the axis `processes`, in as many of torchrun). Exponents are slopes of log
seconds over log size, 1 where the cost is in proportion; what a stage takes at any size pulls them
down, so the exponent without it, of t - a with t = a + b n from the two ends, stands beside.
Finished points lie in --scratch (runs/scaling) and are not made again; `--factor` makes all of them
so many times larger.
"""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from cost_tables import scaling_table  # noqa: E402
from plain_errors import in_a_sentence  # noqa: E402
from provenance import measured_on, refuse_other_picture, refuse_other_result  # noqa: E402
from record import commit  # noqa: E402
from timed_run import timed_run  # noqa: E402

from scdd.config.load import check  # noqa: E402
from scdd.device import resolve_device  # noqa: E402
from scdd.errors import ConfigError  # noqa: E402
from scdd.files import new_folder, replacing, write_json  # noqa: E402
from scdd.progress import say  # noqa: E402

SCHEMA = "scdd scaling 1"
SIZE, CLASSES, IMAGES = 16, 8, 64
"""Pixels, classes and images of a class, but on the axis where they vary."""
VALIDATION = 4
"""Images of a class."""
THREADS = 1
"""Of every process, so that two processes have twice what one has."""


class Axis(NamedTuple):
    """What grows, by how much, and the steps that are to grow with it."""

    sizes: tuple[int, ...]
    steps: tuple[str, ...]
    changes: Callable[[int, int], dict[str, Any]]
    """From size and factor to settings by dotted key."""
    classes: Callable[[int], int] = lambda size: CLASSES
    images: Callable[[int], int] = lambda size: IMAGES


AXES = {
    "images": Axis(
        (64, 128, 256, 512),
        ("squeeze", "probe"),
        lambda size, factor: {"squeeze.epochs": factor},
        images=lambda size: size,
    ),
    "classes": Axis(
        (4, 8, 16, 32),
        ("squeeze", "recover", "relabel", "posttrain"),
        lambda size, factor: {
            "recover.iterations": 10 * factor,
            "relabel.views": 10 * factor,
            "posttrain.epochs": 10 * factor,
        },
        classes=lambda size: size,
    ),
    "iterations": Axis(
        (25, 50, 100, 200),
        ("recover",),
        lambda size, factor: {"recover.iterations": size * factor},
    ),
    "views": Axis(
        (25, 50, 100, 200), ("relabel",), lambda size, factor: {"relabel.views": size * factor}
    ),
    "processes": Axis(
        (1, 2),
        ("squeeze", "recover", "relabel", "posttrain"),
        lambda size, factor: {
            "squeeze.epochs": 2 * factor,
            "recover.iterations": 50 * factor,
            "relabel.views": 50 * factor,
            "posttrain.epochs": 20 * factor,
        },
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every point that is not there yet; print exponents, draw and write."""
    options = parse(arguments)
    refuse_other_result(options.out, SCHEMA)
    refuse_other_picture(options.plot)
    device = resolve_device(options.device)
    chosen = options.axes or list(AXES)
    points: dict[tuple[str, int], list[dict[str, float]]] = {}
    for number in range(options.rounds):
        for name in chosen:
            for size in AXES[name].sizes:
                axis = AXES[name]
                say(f"round {number + 1} of {options.rounds}: {size} {name}")
                data = options.scratch / f"images-{axis.classes(size)}-{axis.images(size)}"
                write_images(data, axis.classes(size), axis.images(size))
                folder = options.scratch / f"{name}-{size}-{number + 1}"
                plan = settings(data, axis.changes(size, options.factor))
                processes = size if name == "processes" else 1
                found = timed_run(plan, folder, str(device), processes)
                points.setdefault((name, size), []).append(found["seconds"])
    result = {
        "schema": SCHEMA,
        "commit": commit(),
        "environment": measured_on(device, THREADS),
        "n": options.rounds,
        "config": {"factor": options.factor, "size": SIZE, "classes": CLASSES, "images": IMAGES},
        "rows": [grown(name, step, points) for name in chosen for step in AXES[name].steps],
    }
    if options.out:
        write_json(options.out, result)
    if options.plot:
        plot(result, options.plot)
    print(scaling_table(result))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        ConfigError: if an axis is unknown.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("axes", nargs="*", metavar="AXIS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--factor", type=int, default=1)
    parser.add_argument("--scratch", type=Path, default=Path("runs") / "scaling")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    for name in options.axes:
        if name not in AXES:
            raise ConfigError(f"{name}: no such axis; axes: {', '.join(AXES)}")
    if options.rounds < 1 or options.factor < 1:
        raise ConfigError("--rounds and --factor must be 1 or more")
    return options


def settings(data: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The whole configuration of a point: the least that still passes through every step."""
    plan: dict[str, Any] = {
        "ipc": 4,
        "threads": THREADS,
        "dataset": {"name": "image_folder", "root": str(data.absolute()), "image_size": SIZE},
        "squeeze": {
            "arch": "resnet8",
            "objective": {"name": "supervised"},
            "epochs": 1,
            "batch": 32,
            "knn_every": 0,
            "views": [{"count": 1}],
        },
        "probe": {"floor": 0.0, "crops": 0, "l2": [0.01], "iterations": 20},
        "recover": {"iterations": 2, "batch": 16},
        "relabel": {"views": 2},
        "posttrain": {"arch": "resnet8", "epochs": 1, "batch": 16, "labels": ["soft"]},
    }
    for key, value in changes.items():
        section, _, name = key.partition(".")
        plan[section][name] = value
    return check(plan, "scaling").model_dump(mode="json")


def write_images(folder: Path, classes: int, images: int) -> None:
    """Make an image folder of noise, if it is not there yet."""
    if folder.exists():
        return
    draw = np.random.default_rng(0)
    with new_folder(folder) as made:
        for split, count in (("train", images), ("val", VALIDATION)):
            for label in range(classes):
                place = made / split / f"class-{label:03}"
                place.mkdir(parents=True)
                for number in range(count):
                    pixels = draw.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(place / f"{number:05}.png")


def grown(
    name: str, step: str, points: Mapping[tuple[str, int], Sequence[Mapping[str, float]]]
) -> dict[str, Any]:
    """How one step grows along one axis: seconds by size, and exponents."""
    own = {
        size: [run[step] for run in runs] for (axis, size), runs in points.items() if axis == name
    }
    sizes, seconds = list(own), [median(each) for each in own.values()]
    return {
        "axis": name,
        "step": step,
        "sizes": sizes,
        "seconds": list(own.values()),
        "exponent": exponent(sizes, seconds),
        "exponent_without_fixed": exponent(sizes, without_fixed(sizes, seconds)),
    }


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float | None:
    """Slope of log seconds over log size, by least squares; None where a time is not positive."""
    if len(sizes) < 2 or min(seconds) <= 0:
        return None
    x, y = np.log(sizes), np.log(seconds)
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


def without_fixed(sizes: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """Seconds less what a line through the two ends has at size 0, if that is more than nothing."""
    slope = (seconds[-1] - seconds[0]) / (sizes[-1] - sizes[0])
    fixed = max(0.0, seconds[0] - slope * sizes[0])
    return [each - fixed for each in seconds]


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Seconds over sizes, both logarithmic, a panel an axis."""
    names = list(dict.fromkeys(row["axis"] for row in result["rows"]))
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4 * columns, 3 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel, name in zip(panels, names, strict=False):
        for row in (row for row in result["rows"] if row["axis"] == name):
            middles = [median(each) for each in row["seconds"]]
            slope = "" if row["exponent"] is None else f" {row['exponent']:.2f}"
            panel.plot(row["sizes"], middles, "o-", label=f"{row['step']}{slope}")
        panel.set(xscale="log", yscale="log", xlabel=name, ylabel="s")
        panel.set_xticks(row["sizes"], [str(size) for size in row["sizes"]], minor=False)
        panel.xaxis.minorticks_off()
        panel.yaxis.set_minor_locator(LogLocator(subs=[2, 5]))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("{x:g}")
        panel.legend(fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


if __name__ == "__main__":
    in_a_sentence(main)
