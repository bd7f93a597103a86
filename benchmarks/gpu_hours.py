"""Time, GPU hours, memory and energy of every step of a preset, from short runs of the real thing.

    python benchmarks/gpu_hours.py PRESET [--set key=value]... [--data DIR] [--device auto]
        [--rounds 3] [--scale 1] [--scratch DIR] [--full-size TRAIN VAL CLASSES] [--out FILE]
        [--check RUN_DIR]

Each round runs `scdd distill` in processes of their own: a short run, one that is four times longer
and one that is wider (more images, students and looks at the validation images), so that what a
step takes at any size is told apart from what each unit takes: t = a + sum_k b_k n_k. That is then
extrapolated to the whole preset. Rounds take turns, medians count, and the error is half the range
of what single rounds foretell. Networks, image sizes, batches, objectives and precision are the
preset's own, and recovery is compiled if the whole run would be; epochs, iterations, views,
students, images per class of the training set and of the result are fewer.

Finished measurements lie in --scratch (runs/gpu_hours/PRESET) and are not made again; `--scale 4`
makes all runs four times as long, for a smaller error. `--full-size` says how large the dataset is
whose costs are wanted, where DIR holds a sample of it. `--check` compares with the seconds of a
finished run of the same preset, of which no step was interrupted.
"""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from cost_tables import hours_table  # noqa: E402
from plain_errors import in_a_sentence  # noqa: E402
from record import commit, without_folder  # noqa: E402
from stage_work import Cost, Sizes, Units, fit, steps_of_an_epoch, work  # noqa: E402
from timed_run import START, timed_run  # noqa: E402

from scdd.config.load import check, find_config, load_config, read_run_config  # noqa: E402
from scdd.config.run import RunConfig  # noqa: E402
from scdd.datasets import Dataset, load_dataset  # noqa: E402
from scdd.device import resolve_device  # noqa: E402
from scdd.errors import ConfigError, UserError  # noqa: E402
from scdd.files import write_json  # noqa: E402
from scdd.models import create_model  # noqa: E402
from scdd.pipeline import plan  # noqa: E402
from scdd.progress import duration, say  # noqa: E402
from scdd.recovery.speed import worth_compiling  # noqa: E402
from scdd.run import RunDirectory, environment  # noqa: E402
from scdd.steps import check_later_steps  # noqa: E402

SCHEMA = "scdd gpu hours 1"
POINTS = ("short", "longer", "wider")
LONGER = 4
SHORT = {"squeeze steps": 16, "probe epochs": 1, "iterations": 25, "views": 25, "epochs": 10}
"""Counts of the short run on a CPU, for --scale 1."""
LEAST_STEPS = 4
"""Of an epoch of squeeze, in a short run."""
ON_GPU = 8
"""How many times more on a GPU, which would be done with those before it is warm."""
BATCHES_OF_GPU = 16
"""Batches of recovery in a short run on a GPU, which sees several in one pass."""
TABLE_10 = {"resnet18": (0.14, 0.04), "resnet50": (0.22, 0.06), "resnet101": (0.26, 0.13)}
"""Hours an epoch of MoCo v2 and of the linear probe on 4 A100, in SC-DD (arXiv:2404.07976)."""
TABLE_11 = {"resnet18": 7.78, "resnet50": 25.04, "resnet101": 35.44}
"""Hours of recovery on one RTX 4090, ipc 50 and, as its speed suggests, 1,000 iterations."""
TABLE_12 = {10: 0.75, 50: 2.53, 100: 4.58}
"""Hours of 100 epochs of post-training by ipc, on one RTX 4090."""
PAPER_CLASSES, PAPER_SIZE, PAPER_ITERATIONS = 1000, 224, 1000


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is not measured yet, extrapolate, compare; print and write it."""
    options = parse(arguments)
    changes = list(options.overrides)
    if options.data is not None:
        root = json.dumps(str(options.data.expanduser().absolute()))
        changes = ["dataset.name=image_folder", f"dataset.root={root}", *changes]
    cfg = load_config(options.preset, changes)
    plan(cfg)
    device = resolve_device(options.device)
    recorded = recorded_seconds(options.check, cfg) if options.check else None
    dataset = load_dataset(cfg.dataset)
    check_later_steps(cfg, dataset)
    other = load_dataset(cfg.squeeze_dataset) if cfg.squeeze_dataset else None
    here = sizes_of(dataset, other, None)
    full = here
    if options.full_size:
        train, val, classes = options.full_size
        full = Sizes(train, val, classes, here.squeezed if other else train)
    preset = find_config(options.preset).stem
    scratch = options.scratch or Path("runs") / "gpu_hours" / preset
    runs = short_runs(cfg, dataset, other, full, device, options.scale)
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for number in range(options.rounds):
        for name, (settings, _) in runs.items():
            say(f"round {number + 1} of {options.rounds}: {name}")
            folder = scratch / f"{name}-{number + 1}"
            measured[name].append(timed_run(settings, folder, str(device)))
    units = {name: own for name, (_, own) in runs.items()}
    whole = work(cfg, full)
    rows = extrapolate(units, measured, whole)
    for row in rows:
        row |= told_of_a_unit(cfg, full, row) | {"paper": papers(cfg, full, row["step"])}
    about = environment(str(device), cfg.threads or torch.get_num_threads())
    about["command"] = shlex.join(map(without_folder, sys.argv))
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    config = cfg.model_dump(mode="json")
    config["dataset"]["root"] = without_folder(config["dataset"]["root"] or "") or None
    result = {
        "schema": SCHEMA,
        "commit": commit(),
        "environment": about,
        "n": options.rounds,
        "preset": preset,
        "config": config,
        "sizes": {"measured": here._asdict(), "whole": full._asdict()},
        "scale": options.scale,
        "runs": {
            name: {"units": units[name], "rounds": [_figures(one) for one in measured[name]]}
            for name in runs
        },
        "rows": rows,
        "check": checked(rows, recorded) if recorded is not None else None,
    }
    if options.out:
        write_json(options.out, result)
    print(hours_table(result))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", help="a preset's name or a YAML file")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=_positive, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--scratch", type=Path, help="where measurements lie")
    parser.add_argument("--full-size", type=_positive, nargs=3, metavar=("TRAIN", "VAL", "CLASSES"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", type=Path, metavar="RUN_DIR")
    return parser.parse_args(arguments)


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{word} is not 1 or more")
    return number


def sizes_of(dataset: Dataset, other: Dataset | None, most: int | None) -> Sizes:
    """Numbers of images, where of each class `most` are used; None: all."""

    def images(data: Dataset) -> int:
        counts = torch.bincount(data.train.labels)
        return int((counts if most is None else counts.clamp(max=most)).sum())

    train = images(dataset)
    squeezed = train if other is None else images(other)
    return Sizes(train, len(dataset.val), len(dataset.classes), squeezed)


def short_runs(
    cfg: RunConfig,
    dataset: Dataset,
    other: Dataset | None,
    full: Sizes,
    device: torch.device,
    scale: float,
) -> dict[str, tuple[dict[str, Any], dict[str, Units]]]:
    """The settings of every run that is measured, and its units of work; each only once."""
    scale *= ON_GPU if device.type == "cuda" else 1
    runs: dict[str, tuple[dict[str, Any], dict[str, Units]]] = {}
    for name in POINTS:
        settings, most = short_settings(cfg, dataset, other, full, device, scale, name)
        if settings in (known for known, _ in runs.values()):
            continue
        runs[name] = settings, work(check(settings, name), sizes_of(dataset, other, most))
    return runs


def short_settings(
    cfg: RunConfig,
    dataset: Dataset,
    other: Dataset | None,
    full: Sizes,
    device: torch.device,
    scale: float,
    name: str,
) -> tuple[dict[str, Any], int | None]:
    """The configuration of one run, and how many training images it has of each class at most."""
    longer, wider = LONGER if name == "longer" else 1, name == "wider"

    def count(what: str) -> int:
        return max(1, round(SHORT[what] * scale)) * longer

    settings = cfg.model_dump(mode="json")
    settings["ipc"] = _fewer_images(cfg, len(dataset.classes), device)
    datasets = [data for data in (dataset, other) if data is not None]
    most = _images_of_a_class(cfg, datasets, full, settings["ipc"])
    if most is not None:
        most *= 2 if wider else 1
        for key in ("dataset", "squeeze_dataset"):
            if settings[key] is not None:
                settings[key]["train_per_class"] = most
    sizes = sizes_of(dataset, other, most)
    trained = [(settings["squeeze"], sizes.squeezed)]
    trained += [(section, sizes.train) for section in settings["squeeze_labellers"]]
    _shorten_squeezes(trained, most, wider, count("squeeze steps"))
    settings["probe"] |= {"floor": 0.0}
    settings["probe"]["epochs"] = min(cfg.probe.epochs, count("probe epochs"))
    for step, section in cfg.recoveries.items():
        turns = len(cfg.teachers_of(step))
        iterations = min(section.iterations, -(-count("iterations") // turns) * turns)
        settings[step] |= {
            "iterations": iterations,
            "warmup": min(section.warmup, iterations - 1),
            "merges": min(section.merges, iterations - 1),
            "compile": "on" if _compiled(cfg, step, full, device) else "off",
        }
    settings["relabel"] |= {"views": min(cfg.relabel.views, count("views")), "epochs": {}}
    training = cfg.posttrain
    epochs = min(training.epochs, count("epochs"))
    settings["posttrain"] |= {"epochs": epochs, "seeds": min(training.seeds, 2 if wider else 1)}
    if training.evaluate_every:
        settings["posttrain"]["evaluate_every"] = max(1, epochs // 4) if wider else epochs
    return settings, most


def _fewer_images(cfg: RunConfig, classes: int, device: torch.device) -> int:
    """Images per class that fill some batches of recovery."""
    batches = BATCHES_OF_GPU if device.type == "cuda" else 1
    largest = max((section.batch for section in cfg.recoveries.values()), default=0)
    return max(1, min(cfg.ipc, -(-batches * largest // classes)))


def _images_of_a_class(
    cfg: RunConfig, datasets: Sequence[Dataset], full: Sizes, ipc: int
) -> int | None:
    """Training images of each class of a short run; None: all, where there are few."""
    least = max(
        (
            max(LEAST_STEPS * section.batch, getattr(section.objective, "queue", 0))
            for section in cfg.squeezes.values()
            if section.checkpoint is None
        ),
        default=0,
    )
    classes = min(len(data.classes) for data in datasets)
    looked_at = [s.candidates for s in cfg.recoveries.values() if s.start == "rded"]
    wanted = max(ipc, math.ceil(least / classes), *looked_at, 1)
    smallest = min(int(torch.bincount(data.train.labels).min()) for data in datasets)
    if 2 * wanted <= smallest:
        return wanted
    # All, unless the cost of more than there are is to be told from two sizes.
    return None if full.train == len(datasets[0].train) else max(1, smallest // 2)


def _shorten_squeezes(
    trained: Sequence[tuple[dict[str, Any], int]], most: int | None, wider: bool, steps: int
) -> None:
    """Cut the epochs of all pre-trainings to the same share, so that their mix stays as it is."""
    own = [(section, images) for section, images in trained if section["checkpoint"] is None]
    if not own:
        return
    kept = max(len(section["keep_epochs"]) for section, _ in own)
    share = min(
        1.0,
        max(
            max(kept, math.ceil(steps / max(1, images // section["batch"]))) / section["epochs"]
            for section, images in own
        ),
    )
    if wider and most is not None:
        share /= 2  # As the images are twice as many.
    for section, _ in own:
        epochs = max(1, kept, round(share * section["epochs"]))
        epochs = min(epochs, section["epochs"])
        section["epochs"] = epochs
        section["keep_epochs"] = [*range(1, 1 + min(len(section["keep_epochs"]), epochs))]
        if section["knn_every"]:
            section["knn_every"] = 1 if wider else epochs
        section["collapse_below"] = 0.0
        if section["objective"].get("queue_from_epoch"):
            section["objective"]["queue_from_epoch"] = 0


def _compiled(cfg: RunConfig, step: str, full: Sizes, device: torch.device) -> bool:
    """Whether the whole run would compile its teachers."""
    size = cfg.dataset.image_size
    networks = cfg.teachers_of(step).values()
    teachers = [create_model(n.arch, full.classes, size, n.stem) for n in networks]
    return worth_compiling(cfg.recoveries[step], teachers, full.classes * cfg.ipc, size, device)


def extrapolate(
    units: Mapping[str, Mapping[str, Units]],
    measured: Mapping[str, Sequence[Mapping[str, Any]]],
    whole: Mapping[str, Units],
) -> list[dict[str, Any]]:
    """What each step of the whole run takes: a row a step, the start of the process first.

    Args:
        units: of the runs by their names, then by step.
        measured: `timed_run` of every round, by the name of the run.
        whole: units of every step of the whole run.
    """
    names, rows = list(units), []
    rounds = len(measured[names[0]])
    for step, wanted in {START: {}, **whole}.items():
        own = [units[name].get(step, {}) for name in names]
        seconds = [[one["seconds"][step] for one in measured[name]] for name in names]
        cost = fit(own, [median(each) for each in seconds])
        alone = [fit(own, [each[number] for each in seconds]) for number in range(rounds)]
        foretold = [one.seconds(wanted) for one in alone]
        every = [one for name in names for one in measured[name]]
        peaks = [one["peak_bytes"][step] for one in every if step in one["peak_bytes"]]
        watts = [one["watts"][step] for one in every if one["watts"].get(step) is not None]
        total = cost.seconds(wanted)
        rows.append(
            {
                "step": step,
                "cost": cost._asdict(),
                "units": wanted,
                "seconds": total,
                "error": (max(foretold) - min(foretold)) / 2 if rounds > 1 else None,
                "gpu_hours": total / 3600,
                "peak_bytes": {
                    kind: max(peak[kind] for peak in peaks) for kind in (peaks[0] if peaks else {})
                },
                "watts": median(watts) if watts else None,
                "kwh": median(watts) * total / 3.6e6 if watts else None,
            }
        )
    return rows


def told_of_a_unit(cfg: RunConfig, sizes: Sizes, row: Mapping[str, Any]) -> dict[str, Any]:
    """What people count a step in, and the seconds of one of it without what is fixed."""
    step, cost = row["step"], Cost(**row["cost"])
    rows = sizes.classes * cfg.ipc
    counted: dict[str, tuple[str, Units]] = {
        "squeeze": ("epoch", {"steps": sizes.squeezed // cfg.squeeze.batch}),
        **{name: ("100 iterations", {"image iterations": 100 * rows}) for name in cfg.recoveries},
        **{
            name: ("view of all images", {"image views": rows})
            for name in ("relabel", "relabel_real", "baseline")
        },
        "posttrain": (
            "100 epochs of a student",
            {"steps": 100 * steps_of_an_epoch(cfg.posttrain, rows)},
        ),
    }
    if cfg.probe.solver == "sgd":
        counted["probe"] = ("epoch", {"images": sizes.train})
    name, amount = counted.get(step, (None, {}))
    if name is None or not all(cost.each.get(key) for key in amount):
        return {"unit": None, "unit_seconds": None}
    return {"unit": name, "unit_seconds": sum(cost.each[key] * n for key, n in amount.items())}


def papers(cfg: RunConfig, sizes: Sizes, step: str) -> dict[str, Any] | None:
    """What SC-DD says a step takes, where this is one of its settings: hours, unit, hardware."""
    arch = cfg.squeeze.arch
    if (sizes.classes, cfg.dataset.image_size) != (PAPER_CLASSES, PAPER_SIZE):
        return None
    moco = cfg.squeeze.checkpoint is None and cfg.squeeze.objective.name == "moco_v2"
    if step in ("squeeze", "probe") and arch in TABLE_10 and (moco or step == "probe"):
        hours = TABLE_10[arch][step == "probe"]
        return {"table": 10, "hours": hours, "unit": "epoch", "hardware": "4 A100"}
    if step == "recover" and arch in TABLE_11 and cfg.ipc == 50:
        hours = TABLE_11[arch] * cfg.recoveries[step].iterations / PAPER_ITERATIONS
        return {"table": 11, "hours": hours, "unit": None, "hardware": "one RTX 4090"}
    if step == "posttrain" and cfg.ipc in TABLE_12:
        hours, unit = TABLE_12[cfg.ipc], "100 epochs of a student"
        return {"table": 12, "hours": hours, "unit": unit, "hardware": "one RTX 4090"}
    return None


def recorded_seconds(run: Path, cfg: RunConfig) -> dict[str, float]:
    """Seconds of every step of a finished run of the same work.

    Raises:
        UserError: if it is not finished, or was made with other settings.
    """
    made = read_run_config(run)
    if made is None or not (run / "report" / "done.json").exists():
        raise UserError(f"--check {run}: is not a finished run; finish it with scdd distill")
    ours, theirs = _costly(cfg), _costly(made)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise ConfigError(
                f"--check {run}: was made with {key} = {theirs.get(key)}, but what is measured has "
                f"{ours.get(key)}; give the same --set to both"
            )
    steps = RunDirectory(run)
    return {name: steps.done(name)["seconds"] for name in work(cfg, Sizes(1, 1, 1, 1))}


def _costly(cfg: RunConfig) -> dict[str, Any]:
    """The settings that decide what a run costs, by dotted key."""
    values = cfg.model_dump(mode="json", exclude={"summary", "recipe", "seed"})
    for key in ("dataset", "squeeze_dataset"):
        if values[key] is not None:
            del values[key]["root"], values[key]["download"]
    return _flat(values)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def checked(
    rows: Sequence[Mapping[str, Any]], recorded: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Foretold and recorded seconds of every step and of all, and the error in per cent."""
    pairs = {row["step"]: (row["seconds"], recorded[row["step"]]) for row in rows[1:]}
    pairs["all"] = (sum(a for a, _ in pairs.values()), sum(b for _, b in pairs.values()))
    for step, (foretold, found) in pairs.items():
        say(f"{step}: {duration(foretold)} foretold, {duration(found)} recorded")
    return {
        step: {
            "foretold": one,
            "recorded": other,
            "per_cent": 100 * (one - other) / max(other, 1e-9),
        }
        for step, (one, other) in pairs.items()
    }


def _figures(one: Mapping[str, Any]) -> dict[str, Any]:
    return {name: one[name] for name in ("seconds", "peak_bytes", "watts")}


if __name__ == "__main__":
    in_a_sentence(main)
