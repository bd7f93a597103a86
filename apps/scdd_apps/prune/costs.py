"""What the networks of a table cost: bytes on disk, and milliseconds for one image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from scdd.tables import counted, size, table
from scdd_apps.prune.plan import Plan
from scdd_apps.prune.pruned_file import load_pruned
from scdd_apps.prune.results import Row
from scdd_apps.report import count_cell
from scdd_apps.report_cost import latencies


def measure_costs(
    plan: Plan, rows: Sequence[Row], out: Path, image_size: int, device: torch.device
) -> list[dict[str, Any]]:
    """Measure the networks of the first seed, of which controls have the same shapes.

    Latencies are in ms for a batch of one, on the CPU and on `device`.
    """
    own = [row for row in rows if row["seed"] == 0 and row["channels"] == plan.criterion]
    models = [load_pruned(out / row["weights"]) for row in own]
    costs: list[dict[str, Any]] = [
        {
            "arm": row["arm"],
            "ratio": row["ratio"],
            "parameters": row["parameters"],
            "macs": row["macs"],
            "bytes": (out / row["weights"]).stat().st_size,
            "latency_ms": {},
        }
        for row in own
    ]
    for where in dict.fromkeys((torch.device("cpu"), device)):
        placed = [model.to(where) for model in models]
        image = torch.zeros(1, 3, image_size, image_size, device=where)
        for cost, latency in zip(costs, latencies(placed, image), strict=True):
            cost["latency_ms"][where.type] = latency._asdict()
    return costs


def costs_text(costs: Sequence[dict[str, Any]], image_size: int) -> str:
    """Table of `measure_costs`, and how it was measured."""
    places = list(costs[0]["latency_ms"])
    headers = [
        *("images", "ratio", "parameters", "MACs", "file"),
        *(f"{place} p50 / p90 ms" for place in places),
    ]
    lines = [
        [
            cost["arm"],
            f"{cost['ratio']:g}",
            count_cell(cost["parameters"]),
            count_cell(cost["macs"]),
            size(cost["bytes"]),
            *("{p50:.2f} / {p90:.2f}".format(**cost["latency_ms"][place]) for place in places),
        ]
        for cost in costs
    ]
    threads = counted(torch.get_num_threads(), "CPU thread")
    return (
        f"{table(headers, lines)}\n\nLatency: one {image_size}x{image_size} image at a time, eager "
        f"PyTorch, {threads}, after a warm-up; the networks took turns."
    )
