"""The table of `scdd-apps crossarch`: an architecture and a file a row."""

from collections.abc import Mapping, Sequence
from typing import Any

from scdd.config.posttrain import PosttrainConfig
from scdd.distilled import DistilledDataset
from scdd.posttraining import Labels, steps_per_epoch
from scdd.tables import table
from scdd_apps.crossarch.recipes import Student
from scdd_apps.files import Inputs
from scdd_apps.report import count_cell, score_cell, score_line

Row = dict[str, Any]


def results_text(
    inputs: Inputs,
    students: Sequence[Student],
    rows: Mapping[Student, Row],
    failures: Mapping[str, str],
    data: Mapping[str, DistilledDataset],
    seeds: int,
) -> str:
    """Table, protocol and what was changed: all that belongs under the heading of the report."""
    kinds = tuple(dict.fromkeys(student.labels for student in students))
    archs = {student.arch: student.cfg for student in students}
    cells = []
    for arch in archs:
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
        *(_protocol(arch, cfg, first, rows) for arch, cfg in archs.items()),
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
    arch: str, cfg: PosttrainConfig, data: DistilledDataset, rows: Mapping[Student, Row]
) -> str:
    own = [row for student, row in rows.items() if student.arch == arch]
    changes = [f"net: {own[0]['stem']}"] if own else []
    return "; ".join([f"- {arch}: {cfg.describe(steps_per_epoch(cfg, data))}", *changes])
