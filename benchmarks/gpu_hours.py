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
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from cost_tables import hours_table  # noqa: E402
from plain_errors import in_a_sentence  # noqa: E402
from provenance import measured_on, refuse_other_result, without_paths  # noqa: E402
from record import commit  # noqa: E402
from short_runs import short_runs, sizes_of  # noqa: E402
from stage_work import Cost, Sizes, Units, fit, steps_of_an_epoch, work  # noqa: E402
from timed_run import START, timed_run  # noqa: E402

from scdd.config.load import find_config, load_config, read_run_config  # noqa: E402
from scdd.config.run import RunConfig  # noqa: E402
from scdd.datasets import load_dataset  # noqa: E402
from scdd.device import resolve_device  # noqa: E402
from scdd.errors import ConfigError, UserError  # noqa: E402
from scdd.files import write_json  # noqa: E402
from scdd.pipeline import plan  # noqa: E402
from scdd.progress import duration, say  # noqa: E402
from scdd.run import RunDirectory  # noqa: E402
from scdd.steps import check_later_steps  # noqa: E402

SCHEMA = "scdd gpu hours 1"
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
    refuse_other_result(options.out, SCHEMA)
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
    result = {
        "schema": SCHEMA,
        "commit": commit(),
        "environment": measured_on(device, cfg.threads),
        "n": options.rounds,
        "preset": preset,
        "config": without_paths(cfg),
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
    parser.add_argument("--scale", type=_above_zero, default=1.0)
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


def _above_zero(word: str) -> float:
    number = float(word)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{word} is not above 0")
    return number


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
