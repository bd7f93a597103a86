"""The tables that results of `scdd-apps` are shown as; benchmarks/tables.py calls these."""

from collections.abc import Iterable
from statistics import mean
from typing import Any

from scdd.tables import counted, mean_sd, size, table
from scdd_apps.report import count_cell

Result = dict[str, Any]

STAGES = ("unpruned", "sparse", "pruned", "recalibrated", "fine-tuned")


def prune_table(result: Result) -> str:
    """Accuracy after every stage, then what each network costs."""
    rows, config = result["rows"], result["config"]
    stages = [stage for stage in STAGES if any(stage in row["top1"] for row in rows)]
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    lines = []
    for arm in arms:
        goals = dict.fromkeys((r["ratio"], r["channels"]) for r in rows if r["arm"] == arm)
        for ratio, channels in goals:
            own = [
                r for r in rows if (r["arm"], r["ratio"], r["channels"]) == (arm, ratio, channels)
            ]
            lines.append(
                [
                    *([arm] if len(arms) > 1 else []),
                    f"{ratio:g}",
                    channels,
                    *(
                        count_cell(mean(row[name] for row in own))
                        for name in ("parameters", "macs")
                    ),
                    *(_scores(row["top1"].get(stage) for row in own) for stage in stages),
                ]
            )
    named = [*(["images"] if len(arms) > 1 else []), "ratio", "channels", "parameters", "MACs"]
    own_costs = [cost for cost in result["costs"] if cost["arm"] == arms[0]]
    costs = [
        [
            f"{cost['ratio']:g}",
            size(cost["bytes"]),
            *(
                f"{latency['p50']:.2f} / {latency['p90']:.2f}"
                for latency in cost["latency_ms"].values()
            ),
        ]
        for cost in own_costs
    ]
    devices = [f"{device} p50 / p90 ms" for device in own_costs[0]["latency_ms"]]
    reached = max(abs(row["achieved"] - row["ratio"]) for row in rows)
    training = "; ".join(result["config"]["training"])
    note = (
        f"{_protocol(result)} {config['arch']}, variant {config['variant']}. Ratio: share of the "
        f"channels, reached within {100 * reached:.1f} points. MACs and latency: one image of "
        f"{result['image_size']} px. Training: {training}. {_hardware(result)}"
    )
    shown = [table([*named, *stages], lines), table(["ratio", "file", *devices], costs)]
    return "\n\n".join([*shown, f"{note}\n"])


def crossarch_table(result: Result) -> str:
    """A line for each architecture, with a column for each kind of images and labels or score."""

    def place(row: Result) -> tuple[str, str]:
        return row["arm"], row.get("labels") or row["by"]

    series = list(dict.fromkeys(map(place, result["rows"])))
    lines = []
    for arch in dict.fromkeys(row["arch"] for row in result["rows"]):
        own = [row for row in result["rows"] if row["arch"] == arch]
        lines.append(
            [
                arch,
                count_cell(own[0]["parameters"]),
                count_cell(own[0]["macs"]),
                str(own[0]["training"]["epochs"]),
                *(_scores(row["top1"] for row in own if place(row) == one) for one in series),
            ]
        )
    headers = ["net", "parameters", "MACs", "epochs", *(f"{a}, {kind}" for a, kind in series)]
    note = f"{_protocol(result)} Tuning {result['config']['tuning']}. {_hardware(result)}"
    return f"{table(headers, lines)}\n\n{note}\n"


def quantize_table(result: Result) -> str:
    """A line for each network: its calibration, what it costs, what it still knows."""
    lines = [
        [
            row["network"],
            row["calibration"] or "-",
            row["method"] or "-",
            size(row["bytes"]),
            f"{row['latency_ms']['p50']:.2f} / {row['latency_ms']['p90']:.2f}",
            _scores([row["top1"]]),
            f"{row['agreement']:.1f}",
            f"{row['logit_error']:.2f}",
        ]
        for row in result["rows"]
    ]
    config = result["config"]
    headers = ["network", "calibration", "range", "size", "p50 / p90 ms", "top-1", "same class"]
    note = (
        f"{_protocol(result)} {config['arch']}; {config['calibration_images']} calibration images "
        f"a row; onnxruntime {result['onnxruntime']}. {_hardware(result)}"
    )
    return f"{table([*headers, 'logit error'], lines)}\n\n{note}\n"


def _scores(found: Iterable[float | None]) -> str:
    known = [score for score in found if score is not None]
    return mean_sd(known) if known else "-"


def _protocol(result: Result) -> str:
    many = f"mean +- sd of {counted(result['n'], 'seed')}" if result["n"] > 1 else "one seed"
    return (
        f"Top-1 % on {result['val_images']} real validation images, last epoch, {many}. File: "
        f"{result['dataset']}, method {result['method']}, {result['images']} images of "
        f"{result['image_size']} px."
    )


def _hardware(result: Result) -> str:
    measured = result["environment"]
    hardware = measured.get("gpu") or measured["processor"]
    return (
        f"{hardware}, {counted(measured['cpu_threads'], 'thread')}, torch "
        f"{measured['versions']['torch']}, commit {result['commit']}."
    )
