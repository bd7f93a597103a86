"""What `scdd-apps crossarch` shows: an architecture and a file a row, and means over seeds."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from scdd.distilled import DistilledDataset
from scdd.posttraining import Labels, steps_per_epoch
from scdd.tables import table
from scdd_apps.crossarch.recipes import Recipe, Student, Tuning
from scdd_apps.files import Inputs, training_identity
from scdd_apps.report import count_cell, score_cell, score_line

Row = dict[str, Any]

MEASURED = ("top1", "top5", "parameters", "macs", "stem", "steps", "seconds", "label_bytes")
"""Columns of the CSV file that a finished row fills."""


@dataclass(frozen=True)
class Mean:
    """The last epoch's top-1 % of one architecture, over its seeds."""

    arch: str
    arm: str
    labels: Labels
    seeds: int
    top1: float | None
    """None where nothing was scored."""
    sd: float
    """Of a sample, over seeds; 0 for one."""
    parameters: int


def means_over_seeds(rows: Mapping[Student, Row]) -> list[Mean]:
    """Mean and standard deviation of all rows that differ in the seed alone."""
    found: dict[tuple[str, str, Labels], list[Row]] = {}
    for student, row in rows.items():
        found.setdefault((student.arch, student.arm, student.labels), []).append(row)
    means = []
    for place, own in found.items():
        scores = [row["top1"] for row in own if row["top1"] is not None]
        top1 = fmean(scores) if scores else None
        sd = stdev(scores) if len(scores) > 1 else 0.0
        means.append(Mean(*place, len(own), top1, sd, own[0]["parameters"]))
    return means


def results_record(
    rows: Mapping[Student, Row], failures: Mapping[str, str], tuning: Tuning
) -> dict[str, Any]:
    """What results.json holds of the rows."""
    return {
        "tuning": tuning,
        "rows": list(rows.values()),
        "means": [asdict(mean) for mean in means_over_seeds(rows)],
        "errors": dict(failures),
    }


def results_csv(
    students: Sequence[Student],
    rows: Mapping[Student, Row],
    failures: Mapping[str, str],
    tuning: Tuning,
) -> str:
    """One line a student: what came of it, or why nothing did, and how it was trained."""
    training = {student: training_identity(student.cfg) for student in students}
    keys = [key for key in training[students[0]] if key != "arch"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["architecture", "images", "labels", "seed", *MEASURED, "tuning", *keys, "error"]
    )
    for student in students:
        row = rows.get(student, {})
        settings = [training[student][key] for key in keys]
        writer.writerow(
            [student.arch, student.arm, student.labels, student.seed]
            + [row.get(name) for name in MEASURED]
            + [tuning, *(json.dumps(v) if isinstance(v, list) else v for v in settings)]
            + ["" if row else failures.get(student.arch, "")]
        )
    return text.getvalue()


def results_text(
    inputs: Inputs,
    students: Sequence[Student],
    rows: Mapping[Student, Row],
    failures: Mapping[str, str],
    data: Mapping[str, DistilledDataset],
    recipes: Mapping[str, Recipe],
    seeds: int,
    tuning: Tuning,
) -> str:
    """Table, protocol and what was changed: all that belongs under the heading of the report."""
    kinds = tuple(dict.fromkeys(student.labels for student in students))
    cells = []
    for arch in recipes:
        for arm in data:
            own = [row for s, row in rows.items() if (s.arch, s.arm) == (arch, arm)]
            cells.append([arch, arm, *_cells(own, kinds, arch in failures)])
    headers = ["architecture", "images", "parameters", "MACs", *(f"{k} labels" for k in kinds)]
    if failures:
        headers.append("remark")
        for line in cells:
            line.append(failures.get(line[0], ""))
    first = next(iter(data.values()))
    label_bytes = first.label_bytes if "soft" in kinds else 0
    scored = len(inputs.val.labels) if inputs.val is not None else 0
    size = inputs.header.image_size
    lines = [
        table(headers, cells),
        "",
        score_line(inputs.header, scored, seeds, label_bytes),
        f"MACs: multiply-accumulates of convolutions and matrix products, one {size}x{size} image.",
        "",
        *_protocol(recipes, first, rows, tuning),
    ]
    return "\n".join(lines)


def _cells(rows: Sequence[Row], kinds: Sequence[Labels], failed: bool) -> list[str]:
    counts = [count_cell(rows[0]["parameters"]), count_cell(rows[0]["macs"])] if rows else ["", ""]
    scores = []
    for kind in kinds:
        found = [row["top1"] for row in rows if row["labels"] == kind]
        scores.append("error" if failed and not found else score_cell(found))
    return [*counts, *scores]


def _protocol(
    recipes: Mapping[str, Recipe],
    data: DistilledDataset,
    rows: Mapping[Student, Row],
    tuning: Tuning,
) -> list[str]:
    """How every architecture was trained, and how its net differs from the stock one."""
    trained = {arch: cfg.describe(steps_per_epoch(cfg, data)) for arch, (cfg, _) in recipes.items()}
    if tuning == "shared":
        lines = [f"Tuning shared, one for every architecture: {next(iter(trained.values()))}."]
    else:
        lines = ["Tuning per-arch: that of the run's own student, with what a net needs beyond."]
    stems = {student.arch: row["stem"] for student, row in rows.items()}
    for arch, recipe in recipes.items():
        facts = [trained[arch]] if tuning == "per-arch" else []
        facts += [recipe.why] if recipe.why else []
        facts += [f"net: {stems[arch]}"] if arch in stems else []
        lines.append(f"- {arch}: {'; '.join(facts)}")
    return [lines[0], "", *lines[1:]]
