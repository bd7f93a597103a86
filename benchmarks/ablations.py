"""Run a study: every arm of a YAML file as whole runs of `scdd distill`, a folder for each seed.

    python benchmarks/ablations.py benchmarks/ablations/NAME.yaml [--data DIR] [--out DIR]
        [--seeds N] [--set key=value]... [--device auto] [--result FILE]

Runs lie in DIR (runs/ablations/NAME) as ARM-SEED; finished ones are skipped, one that was stopped
goes on, and steps that another run of the study has made with the same settings are taken over.
All arms are checked before anything runs. An arm that cannot go on (divergence, out of memory) is
named at the end, after the others. `--set` comes before the settings of the arms.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from ablation_study import Arm, Study, differences, read_study  # noqa: E402
from ablation_table import ablation_table  # noqa: E402
from plain_errors import in_a_sentence, without_redo  # noqa: E402
from provenance import measured_on, refuse_other_result, without_paths  # noqa: E402
from scores import check_score, top1_of  # noqa: E402
from shared_steps import facts_of, share_steps  # noqa: E402

from scdd.config.load import load_config, read_run_config  # noqa: E402
from scdd.config.run import RunConfig  # noqa: E402
from scdd.device import resolve_device  # noqa: E402
from scdd.errors import ConfigError, RunError, StaleStep  # noqa: E402
from scdd.files import write_json  # noqa: E402
from scdd.pipeline import distill, plan  # noqa: E402
from scdd.progress import say  # noqa: E402

SCHEMA = "scdd ablation 1"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not finished, seed by seed; write the result after each, and print the table."""
    options = parse(arguments)
    study = read_study(options.study)
    name = options.study.stem
    if study.needs_data and options.data is None:
        raise ConfigError(f"{options.study}: wants real images; give --data DIR")
    seeds = options.seeds or study.seeds
    cfgs = {
        (arm.name, seed): arm_config(study, arm, seed, options.data, options.overrides)
        for seed in range(seeds)
        for arm in study.arms
    }
    for arm in study.arms:
        plan(cfgs[arm.name, 0])
        check_scores(study, arm, cfgs[arm.name, 0])
    device = resolve_device(options.device)
    out = options.out or Path("runs") / "ablations" / name
    refuse_other_result(options.result, SCHEMA, name)
    _refuse_fewer(options.result, seeds)
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    threads = torch.get_num_threads()
    for (arm_name, seed), cfg in cfgs.items():
        arm = next(arm for arm in study.arms if arm.name == arm_name)
        run = out / f"{arm_name}-{seed}"
        say(f"{name}: {arm_name}, seed {seed}")
        try:
            rows.append(finished_row(study, arm, seed, cfg, run, device))
        except RunError as error:
            failed[run.name] = str(error)
        torch.set_num_threads(threads)  # One arm may have set its own.
        result = {
            "schema": SCHEMA,
            "commit": ", ".join(dict.fromkeys(row["commit"] for row in rows)),
            "environment": measured_on(device),
            "n": seeds,
            "study": name,
            "config": without_paths(cfgs[study.arms[0].name, 0]),
            "asked": study.model_dump(mode="json"),
            "rows": rows,
            "differences": differences(study, rows),
            "failed": failed,
        }
        if options.result is not None:
            write_json(options.result, result)
    print(ablation_table(result))
    if failed:
        first = next(iter(failed))
        raise RunError(
            f"{out}: {len(failed)} of {len(cfgs)} runs could not be finished, such as {first} "
            f"({failed[first]}); the others are kept"
        )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--result", type=Path)
    options = parser.parse_args(arguments)
    if options.seeds is not None and options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; it must be 1 or more")
    return options


def arm_config(
    study: Study, arm: Arm, seed: int, data: Path | None, overrides: Sequence[str] = ()
) -> RunConfig:
    """The configuration of an arm's run.

    Raises:
        ConfigError: naming the arm, if a key or value of it cannot be used.
    """
    changes = [*study.set, *overrides, *arm.set, f"seed={seed}"]
    if data is not None:
        root = json.dumps(str(data.expanduser().absolute()))
        changes = ["dataset.name=image_folder", f"dataset.root={root}", *changes]
    try:
        return load_config(study.preset, changes)
    except ConfigError as error:
        raise ConfigError(f"arm {arm.name}: {error}") from error


def check_scores(study: Study, arm: Arm, cfg: RunConfig) -> None:
    """Refuse a score that no network of the arm will have.

    Raises:
        ConfigError: naming it.
    """
    for score in arm.scores or study.scores:
        try:
            check_score(score, cfg)
        except ConfigError as error:
            raise ConfigError(f"arm {arm.name}: {error}") from error


def _refuse_fewer(result: Path | None, seeds: int) -> None:
    if result is None or not result.exists():
        return
    before = json.loads(result.read_text(encoding="utf-8"))["n"]
    if before > seeds:
        raise ConfigError(
            f"{result}: is of {before} runs an arm, and {seeds} would be left; give --seeds "
            f"{before}, or choose another name"
        )


def finished_row(
    study: Study, arm: Arm, seed: int, cfg: RunConfig, run: Path, device: torch.device
) -> dict[str, Any]:
    """What one run found; it is made first, or finished, where that is not done."""
    record = run / "row.json"
    if record.exists() and read_run_config(run) == cfg:
        row = json.loads(record.read_text())
    else:
        share_steps(cfg, run)
        try:
            distill(cfg, run, device)
        except StaleStep as error:
            raise ConfigError(without_redo(error, run)) from error
        row = {"arm": arm.name, "seed": seed, **facts_of(cfg, run)}
        write_json(record, row)
    scores = [top1_of(row["students"], score) for score in arm.scores or study.scores]
    return row | {"scores": scores}


if __name__ == "__main__":
    in_a_sentence(main)
