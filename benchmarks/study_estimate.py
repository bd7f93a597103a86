"""Minutes that the rows of a study will take: from measured rates, else from FLOPs and a guess."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from rates import Rates
from study_plan import AppRow, Images, Job, ScriptRow

from scdd.config.run import RunConfig
from scdd.datasets import load_dataset
from scdd.estimate import Work, work_of
from scdd.step_identity import settings_of
from scdd.tables import table


class Guess(NamedTuple):
    """What is assumed where nothing was measured."""

    tflops: float
    """10^12 floating point operations a second, all of a step counted."""
    step_milliseconds: float
    """Least time of a batch, however small."""

    def seconds(self, work: Work) -> float:
        """Of one step."""
        least = work.batches * self.step_milliseconds / 1000
        return max(work.flops / (self.tflops * 1e12), least)


class Foreseen(NamedTuple):
    """Of one job."""

    seconds: float
    """Of the steps that no earlier job has made."""
    guessed: tuple[str, ...]
    """Steps that rest on the guess."""
    steps: dict[str, float]
    """Seconds by step; 0 where an earlier job makes it."""


JobWork = Mapping[str, Mapping[str, Work]]
"""What the steps of each run compute, by job."""


def work_of_jobs(
    jobs: Iterable[Job], declared: Mapping[str, Images], folders: Mapping[str, Path]
) -> JobWork:
    """Count the work of every run, whichever is done."""
    known: dict[str, dict[str, Work]] = {}
    found = {}
    for job in jobs:
        if job.cfg is not None:
            images = images_of(job, declared, folders)
            key = job.cfg.model_copy(update={"seed": 0}).model_dump_json() + str(images)
            if key not in known:
                known[key] = work_of(job.cfg, images.train, images.classes)
            found[job.name] = known[key]
    return found


def foresee(jobs: Iterable[Job], work: JobWork, rates: Rates, guess: Guess) -> dict[str, Foreseen]:
    """What every job will take from nothing on, in the order of the plan."""
    made: set[str] = set()
    return {
        job.name: _command(job, rates)
        if job.cfg is None
        else _run(job, job.cfg, work[job.name], rates, guess, made)
        for job in jobs
    }


def _run(
    job: Job, cfg: RunConfig, work: Mapping[str, Work], rates: Rates, guess: Guess, made: set[str]
) -> Foreseen:
    seconds: dict[str, float] = {}
    guessed = []
    data = getattr(job.row, "data", None)
    chains: dict[str, str] = {}
    for step in job.steps:
        chain = json.dumps([settings_of(cfg, step), data, [chains[name] for name in step.inputs]])
        chains[step.name] = f"{step.name} {hash(chain)}"
        if chains[step.name] in made:
            seconds[step.name] = 0.0
            continue
        made.add(chains[step.name])
        own = work.get(step.name, Work(0.0, 0.0))
        known = rates.foreseen(cfg, step.name, own.flops)
        if known is None and own.batches:
            guessed.append(step.name)
        seconds[step.name] = guess.seconds(own) if known is None else known
    return Foreseen(sum(seconds.values()), tuple(guessed), seconds)


def images_of(job: Job, declared: Mapping[str, Images], folders: Mapping[str, Path]) -> Images:
    """How many training images a run sees, counted where they are at hand."""
    assert job.cfg is not None
    name, section = getattr(job.row, "data", None), job.cfg.dataset
    if name is None:
        dataset = load_dataset(section)
        return Images(train=len(dataset.train), classes=len(dataset.classes))
    images = declared[name]
    if name in folders:
        classes = [path for path in (folders[name] / "train").iterdir() if path.is_dir()]
        count = sum(1 for folder in classes for _ in folder.iterdir())
        images = Images(train=max(1, count), classes=max(1, len(classes)))
    if section.train_per_class is not None:
        most = section.train_per_class * images.classes
        images = Images(train=min(images.train, most), classes=images.classes)
    return images


def _command(job: Job, rates: Rates) -> Foreseen:
    """Of an app or script: as long as it took, else the least that its row asks for."""
    known = rates.command(command_key(job))
    guessed = ("all",) if known is None else ()
    seconds = 60 * job.row.needs_minutes if known is None else known
    return Foreseen(seconds, guessed, {"all": seconds})


def command_key(job: Job) -> str:
    """What tells commands apart that take about as long."""
    row = job.row
    assert isinstance(row, AppRow | ScriptRow)
    name = row.app if isinstance(row, AppRow) else row.script
    return " ".join([name, row.of or "", *row.arguments]).strip()


def estimate_table(jobs: Iterable[Job], foreseen: Mapping[str, Foreseen], guess: Guess) -> str:
    """Minutes of every job, and what they rest on."""
    lines = []
    for job in jobs:
        own = foreseen[job.name]
        parts = [
            f"{step} {seconds / 60:.1f}" for step, seconds in own.steps.items() if seconds >= 3
        ]
        if own.guessed == ("all",):
            basis = "the row's needs_minutes"
        else:
            basis = "measured" if not own.guessed else f"assumed: {', '.join(own.guessed)}"
        lines.append([job.name, f"{own.seconds / 60:.1f}", "; ".join(parts) or "-", basis])
    total = sum(foreseen[line[0]].seconds for line in lines) / 60
    lines.append(["all", f"{total:.1f}", "", ""])
    return (
        table(["row", "minutes", "by step", "rests on"], lines)
        + f"\n\nWhere nothing was measured, {guess.tflops:g} TFLOP/s and at least "
        f"{guess.step_milliseconds:g} ms a batch are assumed: of a GPU, by default; say what yours "
        "has by --tflops and --step-ms. Steps that an earlier row makes count there."
    )
