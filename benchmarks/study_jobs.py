"""One row of a study for one seed: begun, gone on with, recorded."""

import gc
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from plain_errors import without_redo
from provenance import measured_on, without_paths
from rates import Rates
from record import commit, record_app
from shared_steps import facts_of, share_steps, teacher_of
from study_estimate import command_key
from study_folder import StudyFolder
from study_plan import AppRow, Job, ScriptRow, score_of
from study_scripts import GRACE_SECONDS, SCRIPTS, app_command, run_process, script_command

from scdd.config.run import RunConfig
from scdd.deadline import Deadline
from scdd.errors import DiskFull, OutOfTime, RunError, StaleStep, UserError
from scdd.estimate import Work
from scdd.files import NO_SPACE, refuse_if_full
from scdd.pipeline import distill
from scdd.progress import say
from scdd.run import RunDirectory

LEAST_SECONDS = 1.0
"""Not worth beginning anything for."""


class Outcome(NamedTuple):
    """What became of a job this time."""

    state: Literal["done", "failed", "stopped", "not begun"]
    progressed: bool = False
    wanted: float = 0.0
    """Seconds that it takes to begin, where there were fewer; 0: that is not what it waits for."""


class Study(NamedTuple):
    """What all jobs share."""

    folder: StudyFolder
    rates: Rates
    limit: Deadline
    """Of this command."""
    reserve: Callable[[], float]
    """Seconds of it that are wanted after the last row."""
    device: torch.device
    data: Mapping[str, Path]
    work: Mapping[str, Mapping[str, Work]]
    """What the steps of each run compute."""
    runs: Mapping[str, Job]
    """The first seed of each run, by the name of its row."""


def attempt(study: Study, job: Job, tight: bool) -> Outcome:
    """Work on a job as far as the time goes; `tight`: only if it is known to fit.

    Raises:
        DiskFull: as it ends the whole study; what is finished is kept.
        RunError: if the device is of no more use to this process.
    """
    try:
        if job.cfg is None:
            return _attempt_command(study, job, tight)
        return _attempt_run(study, job, job.cfg, tight)
    except DiskFull:
        raise
    except StaleStep as error:
        study.folder.fail(job, without_redo(error, study.folder.run(job)))
    except (UserError, RunError) as error:
        study.folder.fail(job, str(error))
    except Exception as error:  # Whatever is wrong with one row, the others can be made.
        if isinstance(error, OSError):
            refuse_if_full(study.folder.path, error)
        traceback.print_exc()
        study.folder.fail(job, f"{type(error).__name__}: {error}")
        if "CUDA error" in str(error):
            raise RunError(
                f"{job.name}: {study.device} fails ({str(error).splitlines()[0]}), so that this "
                "process can do no more with it; run the same command again, which goes on with "
                "the others"
            ) from error
    say(f"{job.name}: failed: {study.folder.failure(job)}")
    return Outcome("failed", progressed=True)


def _attempt_run(study: Study, job: Job, cfg: RunConfig, tight: bool) -> Outcome:
    outcome = _go_on(study, job, cfg, tight)
    if outcome.state == "done":
        study.folder.finish(job, _record(study, job, cfg, study.folder.run(job)))
    return outcome


def _go_on(study: Study, job: Job, cfg: RunConfig, tight: bool) -> Outcome:
    """Make the steps of a run that are not done."""
    run = study.folder.run(job)
    share_steps(cfg, run)
    known = {name: replace(pace) for name, pace in study.rates.paces(cfg).items()}
    following = next_step(job, run)
    if following is not None:
        pace = known.get(following)
        least = 60 * job.row.needs_minutes if pace is None else pace.start + pace.save
        if study.limit.left <= max(least, LEAST_SECONDS) or (tight and pace is None):
            return Outcome("not begun", wanted=max(least, LEAST_SECONDS))
    limit = Deadline(study.limit.left + study.reserve(), known, study.reserve)
    say(f"{job.name}: {following or 'the last record'}")
    study.rates.forget_spent(job.name, (s.name for s in job.steps if not (run / s.name).exists()))
    threads = torch.get_num_threads()
    try:
        until = getattr(job.row, "until", None)
        distill(cfg, run, study.device, until=until, deadline=limit)
    except OutOfTime as stop:
        say(f"{job.name}: {stop}")
        return Outcome("stopped", progressed=bool(limit.spent))
    finally:
        torch.set_num_threads(threads)  # A row may have set its own.
        _free(study.device)
        study.rates.learn(cfg, {name: limit.paces[name] for name in limit.spent})
        study.rates.add_spent(job.name, limit.spent)
        _learn_speeds(study, job, cfg, limit)
        study.rates.write()
    return Outcome("done", progressed=True)


def next_step(job: Job, run: Path) -> str | None:
    """The first step of a run that is not done."""
    return next(
        (step.name for step in job.steps if not (run / step.name / "done.json").exists()), None
    )


def _learn_speeds(study: Study, job: Job, cfg: RunConfig, limit: Deadline) -> None:
    """Keep what steps that have ended now took in all."""
    directory = RunDirectory(study.folder.run(job))
    for step in limit.spent:
        if (directory.path / step / "done.json").exists():
            own = study.work[job.name].get(step, Work(0.0, 0.0))
            seconds = study.rates.spent[job.name][step]
            study.rates.finished(cfg, step, own.flops, seconds)


def _record(study: Study, job: Job, cfg: RunConfig, run: Path) -> dict[str, Any]:
    row = job.row
    whole = getattr(row, "until", None) is None
    facts = facts_of(cfg, run) if whole else teacher_of(cfg, run)
    scores = {score: score_of(facts, score) for score in getattr(row, "scores", ())}
    return {
        "title": row.title or row.name,
        "target": row.target,
        "scores": scores,
        "environment": measured_on(study.device),
        "config": without_paths(cfg),
        **facts,
        "seconds": {
            step: max(seconds, _in_parts(study, run / step / "done.json"))
            for step, seconds in facts["seconds"].items()
        },
    }


def _in_parts(study: Study, marker: Path) -> float:
    """Seconds of a step over all its parts, whichever run made it: the marker knows the last."""
    step, made, runs = marker.parent.name, marker.read_bytes(), study.folder.path / "runs"
    markers = {name: runs / name / step / "done.json" for name in study.rates.spent}
    return max(
        (
            study.rates.spent[name].get(step, 0.0)
            for name, other in markers.items()
            if other.exists() and other.read_bytes() == made
        ),
        default=0.0,
    )


def _free(device: torch.device) -> None:
    """Leave nothing to the next row: memory, or compiled networks, of which there is a limit."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _attempt_command(study: Study, job: Job, tight: bool) -> Outcome:
    row = job.row
    assert isinstance(row, AppRow | ScriptRow)
    made = None if row.of is None else study.folder.run(study.runs[row.of])
    if row.of is not None:
        there = _run_of(study, row, tight)
        if there.state != "done":
            return there
    key, place = command_key(job), study.folder.place(job)
    least = max(_least_seconds(study.rates, job, key), LEAST_SECONDS) + GRACE_SECONDS
    if study.limit.left <= least or (tight and study.rates.command(key) is None):
        return Outcome("not begun", wanted=least)
    if isinstance(row, AppRow):
        assert made is not None
        words = app_command(row.app, made / row.file, row.arguments, place, str(study.device))
        result = place / "results.json"
    else:
        data = study.data[row.data].absolute() if row.data else None
        words = script_command(row.script, row.arguments, place, str(study.device), data, made)
        result = place / "result.json"
    say(f"{job.name}: {' '.join(words[1:4])} ...")
    if _keeps(job) and not place.exists():
        study.rates.forget_spent(job.name, ["all"])
    ended = run_process(words, place / "log.txt", study.limit.left, study.folder.lock)
    study.rates.add_spent(job.name, {"all": ended.seconds})
    try:
        if ended.code is None:
            return Outcome("stopped", progressed=True)
        if ended.code != 0:
            kind = DiskFull if NO_SPACE in ended.said else RunError
            raise kind(f"{ended.said.removeprefix('error: ')} ({place / 'log.txt'})")
        # Others begin anew each time.
        seconds = study.rates.spent[job.name]["all"] if _keeps(job) else round(ended.seconds, 2)
        study.rates.command_took(key, seconds)
    finally:
        study.rates.write()
    is_app = isinstance(row, AppRow)
    found = record_app(result) if is_app else json.loads(result.read_text(encoding="utf-8"))
    study.folder.finish(
        job,
        {
            "title": row.title or row.name,
            "target": row.target,
            "commit": commit(),
            "seconds": {"all": seconds},
            "result": found,
        },
    )
    return Outcome("done", progressed=True)


def _run_of(study: Study, row: AppRow | ScriptRow, tight: bool) -> Outcome:
    """See that a run has what a row works on; its record may be all that was kept of it."""
    assert row.of is not None
    job = study.runs[row.of]
    run = study.folder.run(job)
    over = study.folder.finished(job) is not None
    if isinstance(row, AppRow):
        there, until = (run / row.file).exists(), job.maker_of(row.file)
    else:
        there, until = over and (run / "config.yaml").exists(), getattr(job.row, "until", None)
    if there or not over:
        return Outcome("done" if there else "not begun")
    assert job.cfg is not None
    changed = job._replace(row=job.row.model_copy(update={"until": until}))
    return _go_on(study, changed, job.cfg, tight)


def _least_seconds(rates: Rates, job: Job, key: str) -> float:
    """What has to be left to begin a command: its whole time, or what a part of it asks for."""
    least, known = 60 * job.row.needs_minutes, rates.command(key)
    spent = rates.spent.get(job.name, {}).get("all", 0.0)
    if _keeps(job):
        return min(least, max(known - spent, 0.0)) if known is not None else least
    return known if known is not None else max(least, spent)


def _keeps(job: Job) -> bool:
    """Whether a command that is stopped goes on another time."""
    row = job.row
    return isinstance(row, AppRow) or (
        isinstance(row, ScriptRow) and SCRIPTS[row.script].keeps is not None
    )
