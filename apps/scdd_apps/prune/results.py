"""The report of `scdd-apps prune`: accuracy stage by stage, what was removed, what it was from."""

import itertools
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from scdd.distilled import DistilledDataset
from scdd.posttraining import steps_per_epoch
from scdd.tables import table
from scdd_apps.files import Inputs
from scdd_apps.prune.plan import Plan
from scdd_apps.prune.sparsity import BOUNDS, NEAR_ZERO
from scdd_apps.prune.variants import RANDOM, SCRATCH
from scdd_apps.report import count_cell, score_cell, score_line

Row = dict[str, Any]

STAGES = ("unpruned", "sparse", "pruned", "recalibrated", "fine-tuned")
SCALE_AT_START = 1.0
WORSE = 10.0
"""Points below new weights from which the training before pruning counts as harmful."""
COLLAPSED = 0.95
"""Share of scales near zero above which little of the network is left."""


def results_text(inputs: Inputs, plan: Plan, rows: Sequence[Row], data: DistilledDataset) -> str:
    """Table and protocol: what stands first in the report."""
    scored = len(inputs.val.labels) if inputs.val is not None else 0
    stored = plan.labels == "soft" and not plan.protocol.from_checkpoint
    return "\n".join(
        [
            _table(plan, rows),
            "",
            score_line(inputs.header, scored, plan.seeds, data.label_bytes if stored else 0),
            *_protocol(plan, rows, data),
            *warnings_of(plan, rows),
        ]
    )


def details_text(plan: Plan, rows: Sequence[Row]) -> str:
    """Scales and widths of the first seed."""
    own = [row for row in rows if row["seed"] == 0]
    chosen = [row for row in own if row["channels"] == plan.criterion]
    return "\n".join(
        [
            *_histogram(plan, chosen),
            "Widths, layer by layer (seed 0; the controls have the same):",
            "",
            *(_widths(row) for row in chosen),
        ]
    )


def warnings_of(plan: Plan, rows: Sequence[Row]) -> list[str]:
    """One sentence per thing that makes the numbers mean less than they seem to."""
    if not plan.has_l1:
        return []
    found = []
    if plan.pull < SCALE_AT_START:
        found.append(
            f"Warning: a pull of {plan.pull:g} cannot bring a scale from {SCALE_AT_START:g} to 0; "
            "raise --pull."
        )
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        share, ratio = _mean(own, "share_near_zero"), max(row["ratio"] for row in own)
        came = (
            f"Warning: on the {arm} images {100 * share:.0f} % of the scales came below "
            f"{NEAR_ZERO:g}"
        )
        if share < ratio / 2:
            found.append(
                f"{came}, which is less than half of the ratio {ratio:g}, so channels that were "
                "not off are removed; raise --pull or --epochs."
            )
        if share > COLLAPSED:
            found.append(
                f"{came}, so hardly anything of the network is left and their order says little; "
                "lower --pull or raise --epochs."
            )
        kept = _scores(row for row in own if not row["ratio"])
        for ratio in sorted({row["ratio"] for row in own if row["channels"] == SCRATCH}):
            new = _scores(r for r in own if (r["ratio"], r["channels"]) == (ratio, SCRATCH))
            if kept and new and fmean(kept) < fmean(new) - WORSE:
                found.append(
                    f"Warning: on the {arm} images the network with nothing removed ends at "
                    f"{fmean(kept):.1f} %, and new weights at ratio {ratio:g} at {fmean(new):.1f} "
                    "%, so the sparsity training has done it harm; lower --pull or raise --epochs."
                )
                break
    return [line for sentence in found for line in ("", sentence)]


def _protocol(plan: Plan, rows: Sequence[Row], data: DistilledDataset) -> list[str]:
    teacher = "the unpruned network, live" if plan.protocol.from_checkpoint else "the file"
    labels = f"soft labels of {teacher}" if plan.labels == "soft" else "class labels"
    start = f"from {plan.checkpoint}" if plan.checkpoint else "from new weights"
    size = data.header.image_size
    ranked = {
        "slimming": "the smallest |BatchNorm scale| over all layers (arXiv:1708.06519)",
        "magnitude": "the smallest filters (L2) of every layer, the same share of each",
    }[plan.criterion]
    return [
        f"{plan.arch}, variant {plan.variant}, {start}, {labels}. Rows: {plan.criterion} removes "
        f"{ranked}; {RANDOM} as many channels of each layer, but any; {SCRATCH} trains the widths "
        "found with new weights for all the steps. Ratio 0 is the same training with nothing "
        "removed.",
        "The ratio is the share of channels; see parameters and MACs for what that saves. MACs: "
        f"multiply-accumulates of convolutions and matrix products, one {size}x{size} image.",
        "",
        *(f"- {line}" for line in training_lines(plan, rows, data)),
    ]


def training_lines(plan: Plan, rows: Sequence[Row], data: DistilledDataset) -> list[str]:
    """How every stage trains."""
    each, steps = plan.fine_tuning, steps_per_epoch(plan.scratch, data)
    many = f" in {len(each)} steps, each followed by" if len(each) > 1 else ","
    recalibrated = "with" if plan.bn_recal else "without"
    lines = []
    if plan.first is not None:
        kind = "sparsity training" if plan.has_l1 else "training before pruning"
        l1 = f"; {_pull(plan, rows)}" if plan.has_l1 else ""
        lines.append(f"{kind}: {plan.first.describe(steps)}{l1}")
    lines.append(
        f"pruning{many} fine-tuning: {each[0].describe(steps)}, without L1"
        + (f", {recalibrated} recalibrated BatchNorm statistics" if plan.has_batchnorm else "")
        + (f"; widths are multiples of {plan.round_to}" if plan.round_to > 1 else "")
    )
    lines.append(f"{SCRATCH}: {plan.scratch.describe(steps)}, without L1")
    return lines


def _table(plan: Plan, rows: Sequence[Row]) -> str:
    stages = [stage for stage in STAGES if any(stage in row["top1"] for row in rows)]
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        for ratio, channels in dict.fromkeys((row["ratio"], row["channels"]) for row in rows):
            own = [
                row
                for row in rows
                if (row["arm"], row["ratio"], row["channels"]) == (arm, ratio, channels)
            ]
            lines.append(
                [
                    arm,
                    channels,
                    f"{ratio:g}",
                    f"{_mean(own, 'achieved'):.3f}",
                    _before_and_after(own, "parameters"),
                    _before_and_after(own, "macs"),
                    *(_stage_cell(own, stage) for stage in stages),
                ]
            )
    headers = ["images", "channels", "ratio", "achieved", "parameters", "MACs", *stages]
    return table(headers, lines)


def _scores(rows: Iterable[Row]) -> list[float]:
    found = [row["top1"]["fine-tuned"] for row in rows]
    return [score for score in found if score is not None]


def _stage_cell(rows: Sequence[Row], stage: str) -> str:
    scores = [row["top1"][stage] for row in rows if stage in row["top1"]]
    return score_cell(scores) if scores else "-"


def _before_and_after(rows: Sequence[Row], name: str) -> str:
    before, after = _mean(rows, f"{name}_before"), _mean(rows, name)
    return f"{count_cell(before)} -> {count_cell(after)}"


def _mean(rows: Sequence[Row], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def _pull(plan: Plan, rows: Sequence[Row]) -> str:
    strengths = sorted({row["lambda"] for row in rows})
    small = _mean(rows, "share_near_zero")
    return (
        f"L1 on BatchNorm scales, lambda {', '.join(f'{value:.2e}' for value in strengths)} from a "
        f"pull of {plan.pull:g}; after it {100 * small:.0f} % of scales were below {NEAR_ZERO:g}"
    )


def _histogram(plan: Plan, rows: Sequence[Row]) -> list[str]:
    """Of the scales that the channels were ranked by."""
    if plan.criterion != "slimming":
        return []
    edges = [
        f"below {BOUNDS[0]:g}",
        *(f"{low:g} - {high:g}" for low, high in itertools.pairwise(BOUNDS)),
        f"from {BOUNDS[-1]:g}",
    ]
    of_arm = {row["arm"]: row["histogram"] for row in rows}
    lines = [
        [arm, *(f"{100 * count / sum(counts):.0f} %" for count in counts)]
        for arm, counts in of_arm.items()
    ]
    return ["|BatchNorm scale| before pruning (seed 0):", "", table(["images", *edges], lines), ""]


def _widths(row: Row) -> str:
    return f"- {row['arm']}, ratio {row['ratio']:g}: {', '.join(map(str, row['widths'].values()))}"
