"""Do teachers whose BatchNorm statistics vary more make better distilled images?

    python benchmarks/bn_evidence.py --data DIR --out runs/bn_evidence
        [--only NAME]... [--epochs N]... [--result FILE]

The claim of SC-DD (arXiv:2404.07976, Table 2 and Theorem 1). Every teacher has the same backbone,
batch and number of epochs; only the objective (benchmarks/objectives) and, between groups, the
number of epochs differ. From each, the same distillation (benchmarks/bn_evidence.yaml) follows.
The last line is Spearman's rank correlation between the variance of the statistics across channels
and the accuracy of students. Each teacher is a run directory, so the command goes on where it was
stopped.
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

from scdd.bn_report import report  # noqa: E402
from scdd.checkpoint import load_weights  # noqa: E402
from scdd.config.load import check, read_yaml  # noqa: E402
from scdd.files import write_json  # noqa: E402
from scdd.pipeline import distill  # noqa: E402
from scdd.run import environment  # noqa: E402
from scdd.tables import table  # noqa: E402

OBJECTIVES = ROOT / "benchmarks" / "objectives"
SCHEMA = "scdd bn evidence 1"


def main() -> None:
    """Make every run that is not there yet, then print and write what they say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = sorted(path.stem for path in OBJECTIVES.glob("*.yaml"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", action="append", choices=names)
    parser.add_argument("--epochs", type=int, action="append")
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    rows = [
        measure(name, epochs, options.data, options.out)
        for epochs in options.epochs or [4, 16]
        for name in options.only or names
    ]
