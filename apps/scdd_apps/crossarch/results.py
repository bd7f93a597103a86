"""What `scdd-apps crossarch` shows: an architecture and a file a row, and means over seeds."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from scdd.tables import table
from scdd_apps.crossarch.compared import Compared, L, Row, by_kind, kind_key, kind_title
from scdd_apps.crossarch.options import Tuning
from scdd_apps.report import count_cell, score_cell


@dataclass(frozen=True)
class Mean:
    """The last epoch's top-1 % of one architecture, over its seeds."""

    arch: str
    arm: str
    kind: str
    """Of labels, or of score."""
    seeds: int
    top1: float | None
    """None where nothing was scored."""
    sd: float
    """Of a sample, over seeds; 0 for one."""
    parameters: int

    def record(self) -> dict[str, Any]:
        """The same for results.json."""
        names = {"kind": kind_key(self.kind)}
        return {names.get(name, name): value for name, value in asdict(self).items()}


def scores_of(rows: Mapping[L, Row]) -> list[Row]:
    """A row for each score."""
    return [score for row in rows.values() for score in by_kind(row).values()]


def means_over_seeds(rows: Mapping[L, Row]) -> list[Mean]:
    """Mean and standard deviation of all scores that differ in the seed alone."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for learner, row in rows.items():
        for kind, score in by_kind(row).items():
            found.setdefault((learner.arch, learner.arm, kind), []).append(score)
    means = []
    for place, own in found.items():
        scores = [row["top1"] for row in own if row["top1"] is not None]
        top1 = fmean(scores) if scores else None
        sd = stdev(scores) if len(scores) > 1 else 0.0
        means.append(Mean(*place, len(own), top1, sd, own[0]["parameters"]))
    return means


def results_record(
    rows: Mapping[L, Row], failures: Mapping[str, str], tuning: Tuning
) -> dict[str, Any]:
    """What results.json holds of the rows."""
    return {
        "tuning": tuning,
        "rows": scores_of(rows),
        "means": [mean.record() for mean in means_over_seeds(rows)],
        "errors": dict(failures),
    }


def results_csv(compared: Compared[L], rows: Mapping[L, Row], failures: Mapping[str, str]) -> str:
    """One line a score: what came of it, or why nothing did, and how the network was trained."""
    first = compared.learners[0]
    keys = [key for key in first.identity if key != "arch"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    named = ["architecture", compared.learnt_from, kind_key(first.kinds[0]), "seed"]
    writer.writerow([*named, *compared.measured, "tuning", *keys, "error"])
    for learner in compared.learners:
        settings = [learner.identity[key] for key in keys]
        scores = by_kind(rows[learner]) if learner in rows else {}
        for kind in learner.kinds:
            row = scores.get(kind, {})
            writer.writerow(
                [learner.arch, learner.arm, kind, learner.seed]
                + [row.get(name) for name in compared.measured]
                + [compared.tuning]
                + [json.dumps(v) if isinstance(v, list | dict) else v for v in settings]
                + ["" if row else failures.get(learner.arch, "")]
            )
    return text.getvalue()


def results_text(compared: Compared[L], rows: Mapping[L, Row], failures: Mapping[str, str]) -> str:
    """Table, protocol and what was changed: all that belongs under the heading of the report."""
    kinds = compared.kinds
    cells = []
    for arch in compared.archs:
        for arm, missing in compared.arms.items():
            own = [row for one, row in rows.items() if (one.arch, one.arm) == (arch, arm)]
            cells.append([arch, arm, *_cells(own, kinds, missing, arch in failures)])
    scores = [kind_title(kind) for kind in kinds]
    headers = ["architecture", compared.learnt_from, "parameters", "MACs", *scores]
    if failures:
        headers.append("remark")
        for line in cells:
            line.append(failures.get(line[0], ""))
    return "\n".join([table(headers, cells), "", *compared.notes(rows)])


def _cells(rows: Sequence[Row], kinds: Sequence[str], missing: str, failed: bool) -> list[str]:
    counts = [count_cell(rows[0]["parameters"]), count_cell(rows[0]["macs"])] if rows else ["", ""]
    if missing:
        return [*counts, *(missing for _ in kinds)]
    scores = []
    for kind in kinds:
        found = [by_kind(row)[kind]["top1"] for row in rows if kind in by_kind(row)]
        scores.append("error" if failed and not found else score_cell(found))
    return [*counts, *scores]
