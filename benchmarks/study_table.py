"""The table of a study for the documents: its rows over their seeds, beside what others report."""

from collections.abc import Mapping
from typing import Any

from scdd.progress import duration
from scdd.tables import mean_sd, table


def study_table(result: Mapping[str, Any]) -> str:
    """A line for every score of every row that is finished."""
    rows, lines, seen = result["rows"], [], dict.fromkeys(row["row"] for row in result["rows"])
    for name in seen:
        own = [row for row in rows if row["row"] == name]
        first = own[0]
        hours = sum(sum(row["seconds"].values()) for row in own) / len(own)
        for number, score in enumerate(first.get("scores", {}) or {"-": None}):
            values = [row["scores"][score] for row in own] if score != "-" else []
            lead = number == 0
            lines.append(
                [
                    first["title"] if lead else "",
                    score,
                    mean_sd(values) if values else "-",
                    (first["target"] or "-") if lead else "",
                    duration(hours) if lead else "",
                ]
            )
    environment = result["environment"]
    hardware = environment.get("gpu") or environment["processor"]
    failed = f" Not finished: {', '.join(result['failed'])}." if result["failed"] else ""
    note = (
        f"{result['study']}. Top-1 % on the real validation images, last epoch, mean +- sd of "
        "whole runs where there are several; reported: by others, under their protocol. Time: of "
        "all steps of one run, those that it shares with others included."
        f"{failed} {hardware}, torch {environment['versions']['torch']}, commit "
        f"{result['commit']}."
    )
    headers = ["row", "trained on", "top-1", "reported", "time"]
    return f"{table(headers, lines)}\n\n{note}\n"
