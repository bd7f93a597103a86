"""Measure what the features of each pre-training objective are worth against an untrained net's.

    python benchmarks/squeeze_objectives.py [NAME[=SEEDS]]... --data DIR --out runs/objectives
        [--configs DIR] [--device cuda] [--set key=value]... [--result FILE]

DIR is an image folder with train/ and val/; every objective is a configuration in
benchmarks/objectives (small nets, for a device) or benchmarks/objectives_gpu; without names all of
them are measured, once. The probe on the untrained net, with
the weights that training starts from, is that of the trained one. Each row is a run directory,
so the command goes on where it was stopped. Tune with `--set dataset.holdout=0.2`, which leaves the
validation images alone.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from record import commit  # noqa: E402

from scdd.config.load import load_config  # noqa: E402
from scdd.config.run import RunConfig  # noqa: E402
from scdd.datasets import load_dataset  # noqa: E402
from scdd.device import resolve_device  # noqa: E402
from scdd.files import write_json  # noqa: E402
from scdd.objectives import create_objective  # noqa: E402
from scdd.pipeline import distill  # noqa: E402
from scdd.probing import features, knn_accuracy  # noqa: E402
from scdd.run import environment  # noqa: E402
from scdd.seeding import seeded  # noqa: E402
from scdd.stages.probe import probe  # noqa: E402
from scdd.tables import table  # noqa: E402

SCHEMA = "scdd objectives 1"


def main() -> None:
    """Measure every row that is not there yet, then print and write them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("objectives", nargs="*", metavar="NAME[=SEEDS]")
    parser.add_argument("--configs", type=Path, default=ROOT / "benchmarks" / "objectives")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    device = resolve_device(options.device)
    wanted = options.objectives or sorted(path.stem for path in options.configs.glob("*.yaml"))
    rows = []
    for name, _, seeds in (words.partition("=") for words in wanted):
        for seed in range(int(seeds or 1)):
            root = f"dataset.root={json.dumps(str(options.data.absolute()))}"
            changes = [root, f"seed={seed}", *options.overrides]
            cfg = load_config(str(options.configs / f"{name}.yaml"), changes)
            rows.append(measure(name, cfg, options.out / f"{name}-{seed}", device))
    print(table(["objective", "seed", "untrained", "trained", "gain", "kNN gain"], cells(rows)))
    if options.result:
        result = {
            "schema": SCHEMA,
            "commit": commit(),
            "environment": environment(str(device), torch.get_num_threads()) | {"command": ""},
            "n": Counter(row["objective"] for row in rows),
            "config": {row["objective"]: row.pop("config") for row in rows},
            "rows": rows,
        }
        write_json(options.result, result)


def cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The rows as text."""
    return [
        [
            row["objective"],
            str(row["seed"]),
            *(f"{row[kind]['probe_top1']:.1f}" for kind in ("untrained", "trained")),
            *(
                f"{row['trained'][score] - row['untrained'][score]:+.1f}"
                for score in ("probe_top1", "knn_top1")
            ),
        ]
        for row in rows
    ]


def measure(name: str, cfg: RunConfig, run: Path, device: torch.device) -> dict[str, Any]:
    """One objective and seed: pre-train and probe in a run directory, then probe the start."""
    record = run / "row.json"
    if record.exists():
        return json.loads(record.read_text())
    distill(cfg, run, device, until="probe")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # What a kill made necessary again is logged again.
    epochs = [*{line["epoch"]: line for line in lines if line["stage"] == "squeeze"}.values()]
    teacher = next(line for line in reversed(lines) if line["stage"] == "probe")
    done = json.loads((run / "squeeze" / "done.json").read_text())
    row = {
        "objective": name,
        "seed": cfg.seed,
        "config": cfg.model_dump(mode="json", include={"squeeze", "probe"}),
        "trained": {"probe_top1": teacher["val_top1"], "knn_top1": epochs[-1]["knn_top1"]},
        "untrained": untrained(cfg, device),
        "steps": epochs[-1]["step"],
        "seconds": done["seconds"],
        "epochs": [
            {key: line[key] for key in ("epoch", "loss", "spread", "effective_rank")}
            for line in epochs
        ],
    }
    write_json(record, row)
    return row


def untrained(cfg: RunConfig, device: torch.device) -> dict[str, float]:
    """Probe and kNN on the weights that training starts from."""
    data = load_dataset(cfg.dataset, device)
    with seeded(cfg.seed, "squeeze.init"):
        net: nn.Module = create_objective(
            cfg.squeeze, data.image_size, len(data.classes), len(data.train)
        ).backbone.to(device)
    probed = probe(cfg.probe, net, data.train, data.val, cfg.seed, device)
    neighbours = knn_accuracy(
        features(net, data.train, device),
        data.train.labels.to(device),
        features(net, data.val, device),
        data.val.labels.to(device),
        cfg.squeeze.knn_k,
        cfg.squeeze.knn_temperature,
    )
    return {"probe_top1": probed.accuracy.top1, "knn_top1": neighbours}


if __name__ == "__main__":
    main()
