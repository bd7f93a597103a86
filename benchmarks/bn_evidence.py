"""Do teachers whose BatchNorm statistics vary more make better distilled images?

    python benchmarks/bn_evidence.py --data DIR --out runs/bn_evidence
        [--only NAME]... [--epochs N]... [--device cuda] [--result FILE]

The claim of SC-DD (arXiv:2404.07976, Table 2 and Theorem 1). Every teacher has the same backbone,
batch and images; the objectives (benchmarks/objectives, and supervised) and the number of epochs
differ. From each follows the same distillation (benchmarks/bn_evidence.yaml). The last lines are
Spearman's rank correlations of what might predict the accuracy of students with that accuracy: of
students on recovered images with soft and with hard labels, and, as a control, on random real
images that the same teacher has labelled, for which its statistics play no part. Each teacher is a
run directory, so the command goes on where it was stopped.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from record import commit  # noqa: E402
from tables_of_measurements import EVIDENCE_OUTCOMES, EVIDENCE_PREDICTORS, evidence_table  # noqa: E402

from scdd.bn_report import batchnorm_layers, channel_statistics  # noqa: E402
from scdd.checkpoint import load_weights  # noqa: E402
from scdd.config.load import check, read_yaml  # noqa: E402
from scdd.device import resolve_device  # noqa: E402
from scdd.files import write_json  # noqa: E402
from scdd.pipeline import distill  # noqa: E402
from scdd.run import environment  # noqa: E402

OBJECTIVES = ROOT / "benchmarks" / "objectives"
DISTILLATION = ROOT / "benchmarks" / "bn_evidence.yaml"
SCHEMA = "scdd bn evidence 1"


def main() -> None:
    """Make every run that is not there yet, then print and write what they say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = sorted(path.stem for path in OBJECTIVES.glob("*.yaml"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", action="append", choices=names)
    parser.add_argument("--epochs", type=int, action="append")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    device = resolve_device(options.device)
    rows = [
        measure(name, epochs, options.data, options.out, device)
        for epochs in options.epochs or [5, 15]
        for name in options.only or names
    ]
    result = {
        "schema": SCHEMA,
        "commit": ", ".join(dict.fromkeys(row["commit"] for row in rows)),
        "environment": environment(str(device), torch.get_num_threads()) | {"command": ""},
        "n": len(rows),
        "config": read_yaml(DISTILLATION),
        "rows": rows,
        "correlations": correlations(rows),
    }
    print(evidence_table(result))
    if options.result:
        write_json(options.result, result)


def measure(name: str, epochs: int, data: Path, out: Path, device: torch.device) -> dict[str, Any]:
    """Distil from one teacher; return what its statistics, its losses and its students are."""
    run = out / f"{name}-{epochs}"
    record = run / "row.json"
    if record.exists():
        return json.loads(record.read_text())
    settings = read_yaml(DISTILLATION)
    settings["dataset"]["root"] = str(data.absolute())
    settings["squeeze"] = read_yaml(OBJECTIVES / f"{name}.yaml")["squeeze"] | {"epochs": epochs}
    distill(check(settings, name), run, device, until="posttrain")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if line["stage"] == "recover" and "batch" in line]
    recovered = {line["batch"]: line for line in measured}.values()
    weights, about = load_weights(run / "teacher.safetensors")
    layers = batchnorm_layers(weights, run)
    first, overall = channel_statistics(layers[:1]), channel_statistics(layers)
    scores = json.loads((run / "results.json").read_text())["rows"]
    row = {
        "commit": commit(),
        "objective": name,
        "epochs": epochs,
        "variance_of_first_means": first.variance_of_means,
        "variance_of_means": overall.variance_of_means,
        "variance_of_variances": overall.variance_of_variances,
        "entropy": overall.entropy,
        "probe_top1": about["val_top1"],
        "class_loss": mean(line["class_loss"] for line in recovered),
        "matching_loss": mean(line["matching_loss"] for line in recovered),
        "students": scores,
    }
    write_json(record, row)
    return row


def accuracy(row: dict[str, Any], outcome: str) -> float:
    """Mean top-1 of the students of an outcome."""
    return mean(
        student["top1"]
        for student in row["students"]
        if [student["arm"], student["labels"]] == EVIDENCE_OUTCOMES[outcome]
    )


def correlations(rows: list[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Spearman's coefficient and its p-value for each outcome and predictor."""
    return {
        outcome: {
            name: _spearman([row[name] for row in rows], [accuracy(r, outcome) for r in rows])
            for name in EVIDENCE_PREDICTORS
        }
        for outcome in EVIDENCE_OUTCOMES
    }


def _spearman(x: list[float], y: list[float]) -> tuple[float, float]:
    test = spearmanr(x, y)
    return float(test.statistic), float(test.pvalue)


if __name__ == "__main__":
    main()
