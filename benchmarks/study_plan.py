"""The plan of a study: rows in the order in which they are to be made, read and checked whole.

A row is a run of `scdd distill` (it names a preset), an app on the file of an earlier row (it names
the app), or one of the scripts here (it names the script). See benchmarks/plans.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from checked import checked
from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from scores import check_score, top1_of
from study_scripts import ROOT, SCRIPTS, ScriptName

from scdd.config.load import load_config, read_yaml
from scdd.config.run import RunConfig
from scdd.config.section import Section
from scdd.errors import ConfigError
from scdd.method_steps import Step, steps_of
from scdd.pipeline import plan

TEACHER = "teacher"
"""Score of a row that is of interest for its teacher."""


class Row(Section):
    """What all rows have."""

    name: str
    """Of its files."""
    title: str = ""
    """In tables; not given: the name."""
    target: str = ""
    """The figure that others report, and where."""
    needs_minutes: NonNegativeFloat = 0.0
    """Least time to begin with, as long as nothing is known of how long it takes."""


class RunRow(Row):
    """A run of `scdd distill` for every seed."""

    preset: str
    set: tuple[str, ...] = ()
    """`key=value`."""
    data: str | None = None
    """Which of the image folders that --data names; not given: the images of the preset."""
    seeds: PositiveInt = 1
    until: str | None = None
    """The last step; not given: all."""
    scores: tuple[str, ...] = ("distilled, soft",)
    """Whose accuracy is shown: images and labels as results.json names them, or `teacher`."""


class AppRow(Row):
    """`scdd-apps crossarch` or `prune` on the file of an earlier row."""

    app: Literal["crossarch", "prune"]
    of: str
    """The row whose file it works on, with seed 0."""
    file: Literal["distilled.h5", "real_start.h5", "random_real.h5"] = "distilled.h5"
    arguments: tuple[str, ...] = ()
    needs_minutes: PositiveFloat = 2.0


class ScriptRow(Row):
    """A script of benchmarks/, which writes a result file of its own."""

    script: ScriptName
    arguments: tuple[str, ...] = ()
    data: str | None = None
    """The image folder for its --data."""
    of: str | None = None
    """The row whose run directory is its first argument."""
    needs_minutes: PositiveFloat = 2.0


AnyRow = RunRow | AppRow | ScriptRow
KINDS: dict[str, type[RunRow] | type[AppRow] | type[ScriptRow]] = {
    "preset": RunRow,
    "app": AppRow,
    "script": ScriptRow,
}
"""By the key that only this kind has."""


class Images(Section):
    """How many images a folder has, for estimates where it is not at hand."""

    train: PositiveInt
    classes: PositiveInt


class Plan(Section):
    """A study."""

    title: str
    study: str = ""
    """What a folder and its pieces belong to; plans of one study share them. Not given: the title.
    """
    data: dict[str, Images] = Field(default_factory=dict)
    """Names that rows give to image folders."""
    rows: tuple[AnyRow, ...] = Field(min_length=1)

    @property
    def identity(self) -> str:
        """Tells studies apart."""
        return self.study or self.title

    @model_validator(mode="after")
    def _rows_can_be_told_apart_and_found(self) -> Self:
        names = [row.name for row in self.rows]
        commands = {row.name for row in self.rows if not isinstance(row, RunRow)}
        for number, row in enumerate(self.rows):
            if names.count(row.name) > 1:
                raise ValueError(f"rows: {row.name} stands there twice; name it once")
            if row.name.startswith(".") or not row.name or {"/", "\\"} & {*row.name}:
                raise ValueError(f"rows: {row.name!r} cannot be the name of a file")
            of = getattr(row, "of", None)
            runs = [r.name for r in self.rows[:number] if isinstance(r, RunRow)]
            if of is not None and of not in runs:
                raise ValueError(
                    f"row {row.name}: of: is {of}, but the runs before it are "
                    f"{', '.join(runs) or 'none'}"
                )
            for seed in range(row.seeds if isinstance(row, RunRow) else 0):
                if f"{row.name}-{seed}" in commands:
                    raise ValueError(
                        f"row {row.name}-{seed}: is also the name of seed {seed} of {row.name}; "
                        "choose another"
                    )
            data = getattr(row, "data", None)
            if data is not None and data not in self.data:
                raise ValueError(
                    f"row {row.name}: data: is {data}, but the plan's data are "
                    f"{', '.join(self.data) or 'none'}"
                )
            wanted = isinstance(row, ScriptRow) and SCRIPTS[row.script].of_run
            if isinstance(row, ScriptRow) and bool(wanted) != (row.of is not None):
                raise ValueError(
                    f"row {row.name}: of: {row.script} {'wants a' if wanted else 'takes no'} run "
                    "directory"
                )
        return self


class Job(NamedTuple):
    """One row for one seed."""

    row: AnyRow
    seed: int
    cfg: RunConfig | None
    """Of a run."""

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.row.name}-{self.seed}" if self.cfg is not None else self.row.name

    @property
    def steps(self) -> tuple[Step, ...]:
        """Those of a run, up to where its row ends."""
        assert self.cfg is not None
        steps, until = steps_of(self.cfg), getattr(self.row, "until", None)
        names = [step.name for step in steps]
        return steps if until is None else steps[: 1 + names.index(until)]

    def maker_of(self, file: str) -> str | None:
        """The step of a run that makes this file of the run directory, if one does."""
        return next((step.name for step in self.steps if file in step.shown), None)


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        ConfigError: naming file, row and key, if it cannot be read, or a key is unknown or wrong.
    """
    settings = read_yaml(path)
    rows = settings.get("rows")
    if not isinstance(rows, list):
        raise ConfigError(f"{path}: rows: wants a list of rows")
    settings = {**settings, "rows": [_row(path, number, row) for number, row in enumerate(rows)]}
    return checked(Plan, settings, f"{path}: ")


def jobs_of(path: Path, study: Plan, folders: Mapping[str, Path]) -> list[Job]:
    """All that the plan asks for, in order; `folders` are the image folders that are known.

    Raises:
        ConfigError: naming the row, if a configuration, step, score or file of it cannot be used.
    """
    jobs = [job for row in study.rows for job in _jobs(path, row, folders)]
    first = first_of_runs(jobs)
    for job in jobs:
        row = job.row
        if isinstance(row, AppRow) and first[row.of].maker_of(row.file) is None:
            raise ConfigError(f"{path}: row {row.name}: file: {row.of} makes no {row.file}")
    return jobs


def first_of_runs(jobs: Iterable[Job]) -> dict[str, Job]:
    """The first seed of every run, whose files other rows may work on, by the name of its row."""
    return {job.row.name: job for job in jobs if job.cfg is not None and job.seed == 0}


def _jobs(path: Path, row: AnyRow, folders: Mapping[str, Path]) -> Iterator[Job]:
    if not isinstance(row, RunRow):
        yield Job(row, 0, None)
        return
    try:
        for seed in range(row.seeds):
            changes = [*row.set, f"seed={seed}"]
            if row.data is not None:
                folder = folders.get(row.data, Path(row.data)).expanduser().absolute()
                root = json.dumps(str(folder))
                changes = ["dataset.name=image_folder", f"dataset.root={root}", *changes]
            # Of the repository too, wherever it is started from.
            source = ROOT / row.preset
            with redirect_stdout(io.StringIO()):  # Sections that a method has no use for.
                cfg = load_config(str(source) if source.is_file() else row.preset, changes)
            job = Job(row, seed, cfg)
            if seed == 0:
                plan(cfg, row.until)
                _check_scores(row, job, cfg)
            yield job
    except ConfigError as error:
        raise ConfigError(f"{path}: row {row.name}: {error}") from error


def _check_scores(row: RunRow, job: Job, cfg: RunConfig) -> None:
    """Refuse a score that no student of the row will have."""
    for score in row.scores:
        if score == TEACHER:
            if not any(step.name == "probe" for step in job.steps):
                ends = "" if row.until is None else f" that ends after {row.until}"
                raise ConfigError(f"scores: method {cfg.method}{ends} has no {TEACHER}")
            continue
        if row.until is not None:
            raise ConfigError(
                f"scores: '{score}' wants students, but the row ends after {row.until}"
            )
        check_score(score, cfg)


def score_of(facts: Mapping[str, Any], score: str) -> float:
    """A score of a finished run, in per cent."""
    if score == TEACHER:
        return float(facts["teacher_top1"])
    return top1_of(facts["students"], score)


def _row(path: Path, number: int, settings: Any) -> AnyRow:
    name = settings.get("name") if isinstance(settings, dict) else None
    where = f"{path}: row {name or number + 1}: "
    kinds = [key for key in KINDS if isinstance(settings, dict) and key in settings]
    if len(kinds) != 1:
        raise ConfigError(f"{where}wants one of the keys {', '.join(KINDS)}")
    return checked(KINDS[kinds[0]], settings, where)
