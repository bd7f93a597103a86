"""Turn a finished run directory, or a folder of an app, into a result file that the tables are
built from.

    python benchmarks/record.py runs/digits benchmarks/results/digits.json
    python benchmarks/record.py runs/digits/prune benchmarks/results/prune_digits.json

Scores, times and peak memory are copied from the run; hardware, versions and command from its
environment.json; the commit is that of the checkout, which has to be clean. Of absolute paths only
the last part is kept.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from plain_errors import in_a_sentence  # noqa: E402

from scdd.checkpoint import load_weights  # noqa: E402
from scdd.distilled import DistilledFile  # noqa: E402
from scdd.distilled.bill import describe_bill  # noqa: E402
from scdd.errors import UserError  # noqa: E402

SCHEMA, SCHEMA_OF_PAIRS = "scdd result 1", "scdd pairs 1"
FOLDERS = re.compile(r"""(?<![^=:,\[{'"\s])/(?:[^/,\]}'"\s]+/)+""")
"""All but the last part of an absolute path, also as a value of a setting."""


def record(run: Path) -> dict[str, Any]:
    """Collect what a table needs to be believed.

    Raises:
        UserError: if the run is not finished.
    """
    results, environment = run / "results.json", run / "environment.json"
    if "app" in json.loads(results.read_text() if results.exists() else "{}"):
        return record_app(results)
    if not (run / "report" / "done.json").exists():
        raise UserError(f"{run}: is not a finished run; finish it with scdd distill")
    config = without_roots(yaml.safe_load((run / "config.yaml").read_text()))
    steps = {path.parent.name: json.loads(path.read_text()) for path in run.glob("*/done.json")}
    scores = json.loads(results.read_text())
    return {
        "commit": commit(),
        "environment": _without_folders(json.loads(environment.read_text())),
        "config": config,
        "val_images": scores["val_images"],
        "rows": scores["rows"],
        "seconds": {name: done["seconds"] for name, done in steps.items()},
        "peak_bytes": {name: done["peak_bytes"] for name, done in steps.items()},
        **(_of_pairs if "pretrain" in steps else _of_classes)(run, config, scores),
    }


def _of_classes(run: Path, config: dict[str, Any], scores: dict[str, Any]) -> dict[str, Any]:
    """What a run has whose images have classes."""
    return {
        "schema": SCHEMA,
        "n": config["posttrain"]["seeds"],
        # Not from the log, where a probe that was taken over has no line.
        "teacher_top1": load_weights(run / "probe" / "teacher.safetensors")[1]["val_top1"],
    }


def _of_pairs(run: Path, config: dict[str, Any], scores: dict[str, Any]) -> dict[str, Any]:
    """What a run has whose images have representations."""
    # Of the last attempt; pairs that are not learnt have no such loss.
    judged = [line for line in _metrics(run, "condense_pairs") if "judged_end" in line][-1:]
    with DistilledFile(run / "distilled.h5") as file:
        assert file.header.budget_n is not None
        bill = describe_bill(file.bill, file.header.budget_n)
    return {
        "schema": SCHEMA_OF_PAIRS,
        "n": config["pretrain"]["seeds"],
        "tasks": scores["tasks"],
        "outer_loss": {
            name: line[f"judged_{name}"] for line in judged for name in ("start", "end")
        },
        "bill": bill,
    }


def _metrics(run: Path, stage: str) -> list[dict[str, Any]]:
    """What a step has logged, in order."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["stage"] == stage]


def without_roots(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the last part of the folders of images only, changed in place."""
    sections = [config.get("dataset"), config.get("squeeze_dataset")]
    sections += (config.get("pretrain") or {}).get("transfer", ())
    for section in filter(None, sections):
        section["root"] = without_folder(section["root"] or "") or None
    return config


def record_app(results: Path) -> dict[str, Any]:
    """What an app has measured, without the cuts that only its networks need."""
    found = json.loads(results.read_text())
    measured = _without_folders(found.pop("environment"))
    for name in ("file", "baseline", "network"):
        if found.get(name):
            found[name] = without_folder(found[name])
    for row in found["rows"]:
        row.pop("cuts", None)
        row.pop("weights", None)
    named = ("arch", "variant", "tuning", "training", "calibration_images")
    return {
        "schema": f"scdd {found['app']} 1",
        "commit": commit(),
        "environment": measured,
        "config": {name: found.pop(name) for name in named if name in found},
        "n": 1 + max(row.get("seed", 0) for row in found["rows"]),
        **found,
    }


def _without_folders(measured: dict[str, Any]) -> dict[str, Any]:
    """An environment whose command names no folder of this machine."""
    words = shlex.split(measured["command"])
    for package, name in (("scdd_apps", "scdd-apps"), ("scdd", "scdd")):
        if words[0].endswith(f"{package}/__main__.py"):
            words[0] = name
    return {**measured, "command": shlex.join(map(without_folder, words))}


def without_folder(word: str) -> str:
    """The last part of an absolute path, alone or among settings; any other word as it is."""
    return Path(word).name if Path(word).is_absolute() else FOLDERS.sub("", word)


def commit() -> str:
    """The commit of the checkout, with a mark if it has changes; of a copy, SCDD_COMMIT says it.

    Raises:
        UserError: if neither is there.
    """
    if told := os.environ.get("SCDD_COMMIT"):
        return told
    try:
        head = _git(ROOT, "rev-parse", "--short", "HEAD")
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"{ROOT}: git tells no commit of it; where it is a copy without its repository, say "
            "the commit in SCDD_COMMIT (or --commit, of a study)"
        ) from error
    return head + (
        "+changes" if _git(ROOT, "status", "--porcelain", "scdd", "apps", "configs") else ""
    )


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main() -> None:
    """Read the command line and write the file."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    target = Path(sys.argv[2])
    found = record(Path(sys.argv[1]))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, indent=2) + "\n")
    print(target)


if __name__ == "__main__":
    in_a_sentence(main)
