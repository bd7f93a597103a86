"""The table of a study: every row, how far it is, its scores beside those of others, its time."""

from collections.abc import Mapping, Sequence
from typing import Any

from study_estimate import Foreseen, wanted_steps
from study_folder import StudyFolder
from study_jobs import Study, next_step
from study_plan import Job

from scdd.progress import duration
from scdd.tables import mean_sd, table


def progress_table(study: Study, jobs: Sequence[Job], foreseen: Mapping[str, Foreseen]) -> str:
    """One line a job: state, scores, minutes used and foreseen."""
    lines = []
    for job in jobs:
        used = sum(study.rates.spent.get(job.name, {}).values()) / 60
        lines.append(
            [
                job.row.name,
                str(job.seed) if job.cfg is not None else "-",
                state_of(study.folder, job),
                scores_of(study.folder, job),
                f"{used:.1f}",
                f"{foreseen[job.name].seconds / 60:.1f}"
                + ("" if not foreseen[job.name].guessed else " ?"),
            ]
        )
    headers = ["row", "seed", "state", "scores", "min used", "min foreseen"]
    note = "?: rests on an assumed speed. Steps that an earlier row makes count there."
    return f"{table(headers, lines)}\n\n{note}"


def state_of(folder: StudyFolder, job: Job) -> str:
    """done, failed, at a step, or not begun."""
    if folder.finished(job) is not None:
        return "done"
    if (sentence := folder.failure(job)) is not None:
        return f"failed: {sentence}"
    if job.cfg is None:
        return "begun" if folder.place(job).exists() else "not begun"
    run = folder.run(job)
    if not any((run / step.name).exists() for step in wanted_steps(job)):
        return "not begun"
    return f"at {next_step(job, run) or 'its end'}"


def scores_of(folder: StudyFolder, job: Job) -> str:
    """The scores of a finished run."""
    record = folder.finished(job)
    found = {} if record is None else record.get("scores", {})
    return "; ".join(f"{name} {value:.1f}" for name, value in found.items()) or "-"


def study_table(result: Mapping[str, Any]) -> str:
    """For the documents: a line for every row, over its seeds, beside what others report."""
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
