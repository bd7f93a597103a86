"""The table of `scdd-apps prune`: accuracy, parameters and MACs, stage by stage."""

from collections.abc import Sequence
from typing import Any

from scdd.distilled import DistilledDataset
from scdd.posttraining import steps_per_epoch
from scdd.tables import table
from scdd_apps.files import Inputs
from scdd_apps.prune.plan import Plan
from scdd_apps.prune.sparsity import NEAR_ZERO
from scdd_apps.report import count_cell, score_cell, score_line

Row = dict[str, Any]

STAGES = ("sparse", "pruned", "recalibrated", "fine-tuned")
SCALE_AT_START = 1.0


def results_text(inputs: Inputs, plan: Plan, rows: Sequence[Row], data: DistilledDataset) -> str:
    """Table, protocol, widths: all that belongs under the heading of the report."""
    scored = len(inputs.val.labels) if inputs.val is not None else 0
    label_bytes = data.label_bytes if plan.labels == "soft" else 0
    size = inputs.header.image_size
    steps = steps_per_epoch(plan.sparsity, data), steps_per_epoch(plan.fine_tuning, data)
    return "\n".join(
        [
            _table(rows),
            "",
            score_line(inputs.header, scored, plan.seeds, label_bytes),
            f"{plan.arch}, {plan.labels} labels. Ratio 0 is the control: the same training, with "
            "nothing removed.",
            f"MACs: multiply-accumulates of convolutions and matrix products, one {size}x{size} "
            "image.",
            "",
            f"- sparsity training: {plan.sparsity.describe(steps[0])}; {_pull(plan, rows)}",
            f"- fine-tuning: {plan.fine_tuning.describe(steps[1])}, without L1",
            "",
            "Widths, layer by layer (seed 0):",
            "",
            *(_widths(row) for row in rows if row["seed"] == 0),
        ]
    )


def _table(rows: Sequence[Row]) -> str:
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        for ratio in sorted({row["ratio"] for row in rows}):
            own = [row for row in rows if (row["arm"], row["ratio"]) == (arm, ratio)]
            stages = [score_cell([row["top1"][stage] for row in own]) for stage in STAGES]
            lines.append(
                [
                    arm,
                    f"{ratio:g}",
                    f"{_mean(own, 'achieved'):.3f}",
                    _before_and_after(own, "parameters"),
                    _before_and_after(own, "macs"),
                    *stages,
                ]
            )
    return table(["images", "ratio", "achieved", "parameters", "MACs", *STAGES], lines)


def _before_and_after(rows: Sequence[Row], name: str) -> str:
    before, after = _mean(rows, f"{name}_before"), _mean(rows, name)
    return f"{count_cell(before)} -> {count_cell(after)}"


def _mean(rows: Sequence[Row], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def _pull(plan: Plan, rows: Sequence[Row]) -> str:
    strengths = sorted({row["lambda"] for row in rows})
    small = _mean(rows, "share_near_zero")
    weak = (
        f"; too weak to bring a scale from {SCALE_AT_START:g} to 0, raise --pull"
        if plan.pull < SCALE_AT_START
        else ""
    )
    return (
        f"L1 on BatchNorm scales, lambda {', '.join(f'{value:.2e}' for value in strengths)} from a "
        f"pull of {plan.pull:g}{weak}; after it {100 * small:.0f} % of scales were below "
        f"{NEAR_ZERO:g}"
    )


def _widths(row: Row) -> str:
    return f"- {row['arm']}, ratio {row['ratio']:g}: {', '.join(map(str, row['widths'].values()))}"
