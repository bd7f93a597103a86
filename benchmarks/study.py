"""Work through a plan of rows for some minutes; the same command goes on with it another time.

    python benchmarks/study.py benchmarks/plans/NAME.yaml --minutes M --out DIR
        [--data NAME=DIR]... [--device auto] [--result FILE] [--retry] [--commit C]
        [--pieces DIR [--piece 15MB] [--bf16]]
    python benchmarks/study.py PLAN.yaml --estimate [--out DIR] [--tflops 40] [--step-ms 2]

Rows are runs of `scdd distill`, apps on their files, and scripts of this folder, made in the order
of the plan; all are checked before anything runs. Finished ones lie in DIR/rows as one JSON each
and are never made again; steps that a run before has made are taken over. Nothing is begun that
cannot reach its next checkpoint in the minutes left, as far as DIR/rates.json has learnt, and what
runs is saved and left before they are over. A row that cannot go on lies in DIR/failed with its
reason, while the others go on; --retry tries it again. `--pieces` writes what is needed to go on as
files of a limited size, for places that keep nothing, and fills DIR from them.

Exit codes: 0 when all rows are done, 3 when the time is over and some are left, 1 when what is left
has failed, else as `scdd`.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

STARTED = time.monotonic()
"""Before the imports below, which take seconds of the time that is given."""

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from piece_files import reserve  # noqa: E402
from pieces import check_place, fill_from, parse_size, write_pieces  # noqa: E402
from plain_errors import in_a_sentence  # noqa: E402
from provenance import measured_on, refuse_other_result  # noqa: E402
from rates import Rates  # noqa: E402
from record import commit  # noqa: E402
from study_estimate import Guess, estimate_table, foresee, work_of_jobs  # noqa: E402
from study_folder import StudyFolder  # noqa: E402
from study_jobs import Study, attempt  # noqa: E402
from study_plan import Job, Plan, first_of_runs, jobs_of, read_plan  # noqa: E402
from study_progress import progress_table  # noqa: E402

from scdd.deadline import Deadline  # noqa: E402
from scdd.device import resolve_device  # noqa: E402
from scdd.errors import ConfigError, OutOfTime, RunError  # noqa: E402
from scdd.files import write_json  # noqa: E402

SCHEMA = "scdd study 1"
LEAVING_SECONDS = 2.0
"""Left for the last table, and for the process to end."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Go on with a study, or say what it will take."""
    options = parse(arguments)
    plan = read_plan(options.plan)
    folders = image_folders(options.data, plan)
    jobs = jobs_of(options.plan, plan, folders)
    device = resolve_device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    guess = Guess(options.tflops, options.step_ms)
    if options.estimate:
        rates = Rates.read(options.out and options.out / "rates.json", name, or_only=True)
        print(f"{plan.title}{f', on {rates.device}' if rates.learnt else ''}\n")
        foreseen = foresee(jobs, work_of_jobs(jobs, plan.data, folders), rates, guess)
        print(estimate_table(jobs, foreseen, guess))
        return
    _refuse_missing_data(options.plan, jobs, folders)
    refuse_other_result(options.result, SCHEMA, plan.title)
    if options.commit:
        os.environ["SCDD_COMMIT"] = options.commit  # For the scripts too.
    commit()  # Refused before anything runs, if nothing tells it.
    folder, pieces = StudyFolder(options.out), options.pieces
    if pieces is not None:
        check_place(pieces, folder.path)
        fill_from(pieces, folder.path, plan.identity)
    over = partial(over_and_done, folder, jobs)
    with folder.held(plan.identity) as turn:
        if options.retry:
            folder.forget_failures()
        for job in jobs:
            folder.finished(job)  # Refused before anything runs, if it was made otherwise.
        seconds = 60 * options.minutes - (time.monotonic() - STARTED) - LEAVING_SECONDS
        after = reserve(folder.path, over) if pieces is not None else float
        limit = Deadline(seconds, reserve=after)
        rates = Rates.read(folder.path / "rates.json", name)
        work = work_of_jobs(jobs, plan.data, folders)
        study = Study(folder, rates, limit, after, device, folders, work, first_of_runs(jobs))
        try:
            try:
                missing = work_through(study, plan, jobs, options.result)
            finally:
                write_result(study, plan, jobs, options.result)
            print(progress_table(study, jobs, foresee(jobs, work, rates, guess)))
        finally:  # Whatever ended it, a place that keeps nothing has nothing else.
            if pieces is not None:
                about = plan.identity, turn, options.piece, options.bf16, over()
                print(write_pieces(folder.path, pieces, *about))
    _end(study, jobs, options.minutes, missing)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--minutes", type=float, help="of this command")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--result", type=Path)
    parser.add_argument("--retry", action="store_true", help="rows that have failed, too")
    parser.add_argument("--commit", help="for a copy of the files without their git repository")
    parser.add_argument("--pieces", type=Path, metavar="DIR")
    parser.add_argument("--piece", type=parse_size, default=15_000_000, help="default: 15MB")
    parser.add_argument("--bf16", action="store_true", help="store moments in half the bytes")
    parser.add_argument("--estimate", action="store_true", help="run nothing")
    parser.add_argument("--tflops", type=float, default=40.0, help="assumed; default: 40")
    parser.add_argument("--step-ms", type=float, default=2.0, help="assumed; default: 2")
    options = parser.parse_args(arguments)
    if not options.estimate and (options.minutes is None or options.out is None):
        parser.error("--minutes and --out are wanted (or --estimate)")
    for name in ("minutes", "tflops", "step_ms"):
        given = getattr(options, name)
        if given is not None and not given > 0:
            raise ConfigError(f"--{name.replace('_', '-')} {given:g}: wants more than 0")
    return options


def image_folders(given: Sequence[str], plan: Plan) -> dict[str, Path]:
    """The folders of `NAME=DIR`.

    Raises:
        ConfigError: if a name is not the plan's, or a folder is not there.
    """
    folders = {}
    for word in given:
        name, equals, folder = word.partition("=")
        if not equals or not folder:
            raise ConfigError(f"--data {word}: wants NAME=DIR")
        if name not in plan.data:
            known = ", ".join(plan.data) or "none"
            raise ConfigError(f"--data {word}: the plan has no images '{name}'; it has: {known}")
        folders[name] = Path(folder).expanduser()
        if not (folders[name] / "train").is_dir():
            raise ConfigError(f"--data {word}: there is no folder {folders[name] / 'train'}")
    return folders


def work_through(study: Study, plan: Plan, jobs: Sequence[Job], result: Path | None) -> list[Job]:
    """Attempt every job in turn; return those for which the time was too short.

    Raises:
        ConfigError: if the time is too short to begin anything.
    """
    progressed: bool = False
    short: list[Job] = []
    least: tuple[float, Job] | None = None
    for job in jobs:
        if study.folder.finished(job) is not None or study.folder.failure(job) is not None:
            continue
        # With little time left; what never fits must not keep others from their first time.
        outcome = attempt(study, job, tight=bool(short) and progressed)
        progressed = progressed or outcome.progressed
        if outcome.state == "done":
            write_result(study, plan, jobs, result)
        elif outcome.state == "stopped" or outcome.wanted:
            short.append(job)
        if outcome.wanted and (least is None or outcome.wanted < least[0]):
            least = outcome.wanted, job
    if least is not None and not progressed:
        seconds, job = least
        known = study.folder.path / "rates.json"
        raise ConfigError(
            f"--minutes: too few for a single checkpoint; {job.name} wants {seconds / 60:.2g} "
            "minutes to its next one, besides what starting takes; give more"
            + (f", or delete {known} if it was out of the ordinary" if known.exists() else "")
        )
    return short


def over_and_done(folder: StudyFolder, jobs: Sequence[Job]) -> set[str]:
    """Names of the jobs that are finished and that nothing else has to work on."""
    done = {job.name for job in jobs if folder.finished(job) is not None}
    used = {getattr(job.row, "of", None) for job in jobs if job.name not in done}
    return {job.name for job in jobs if job.name in done and job.row.name not in used}


def write_result(study: Study, plan: Plan, jobs: Sequence[Job], path: Path | None) -> None:
    """Write what is finished, if that is asked for: runs as one result file, others beside it."""
    if path is None:
        return
    records = [record for job in jobs if (record := study.folder.finished(job)) is not None]
    failures = {job.name: study.folder.failure(job) for job in jobs}
    for record in records:
        if "result" in record:  # With a schema, and so a table, of its own.
            write_json(path.with_name(f"{path.stem}_{record['row']}.json"), record["result"])
    rows = [
        {key: row[key] for key in row if key not in ("environment", "asked")}
        for row in records
        if "result" not in row
    ]
    write_json(
        path,
        {
            "schema": SCHEMA,
            "study": plan.title,
            "commit": ", ".join(dict.fromkeys(row["commit"] for row in rows)) or commit(),
            "environment": measured_on(study.device),
            "n": max((getattr(job.row, "seeds", 1) for job in jobs), default=1),
            "rows": rows,
            "failed": {name: why for name, why in failures.items() if why is not None},
        },
    )


def _refuse_missing_data(path: Path, jobs: Sequence[Job], folders: Mapping[str, Path]) -> None:
    for job in jobs:
        data = getattr(job.row, "data", None)
        if data is not None and data not in folders:
            raise ConfigError(f"{path}: row {job.row.name}: data: give --data {data}=DIR")


def _end(study: Study, jobs: Sequence[Job], minutes: float, short: Sequence[Job]) -> None:
    """Leave with what is to be said of rows that are not done."""
    folder = study.folder
    done = sum(folder.finished(job) is not None for job in jobs)
    so_far = f"{folder.path}: {done} of {len(jobs)} rows are done"
    if short:
        raise OutOfTime(f"{so_far} and the {minutes:g} minutes over; the same command goes on")
    failed = [job.name for job in jobs if folder.failure(job) is not None]
    if failed:
        raise RunError(
            f"{so_far}; {', '.join(failed)} cannot go on, nor can rows that build on them "
            f"({folder.failure(_job(jobs, failed[0]))}); --retry tries them again"
        )


def _job(jobs: Sequence[Job], name: str) -> Job:
    return next(job for job in jobs if job.name == name)


if __name__ == "__main__":
    in_a_sentence(main)
