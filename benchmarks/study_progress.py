"""How far a study is: the state of every row, its scores, its time."""

from collections.abc import Mapping, Sequence

from study_estimate import Foreseen
from study_folder import StudyFolder
from study_jobs import Study, next_step
from study_plan import Job

from scdd.tables import table


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
    failures = [(job.name, study.folder.failure(job)) for job in jobs]
    said = [f"{name}: {sentence}" for name, sentence in failures if sentence is not None]
    return "\n".join([table(headers, lines), "", note, *said])


def state_of(folder: StudyFolder, job: Job) -> str:
    """done, failed, at a step, or not begun."""
    if folder.finished(job) is not None:
        return "done"
    if folder.failure(job) is not None:
        return "failed"
    if job.cfg is None:
        return "begun" if folder.place(job).exists() else "not begun"
    run = folder.run(job)
    if not any((run / step.name).exists() for step in job.steps):
        return "not begun"
    return f"at {next_step(job, run) or 'its end'}"


def scores_of(folder: StudyFolder, job: Job) -> str:
    """The scores of a finished run."""
    record = folder.finished(job)
    found = {} if record is None else record.get("scores", {})
    return "; ".join(f"{name} {value:.1f}" for name, value in found.items()) or "-"
