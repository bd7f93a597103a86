"""A study: arms that differ in some settings, each run whole for every seed, and their differences.

Read from benchmarks/ablations/*.yaml.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, Self

from checked import checked
from pydantic import Field, PositiveInt, model_validator

from scdd.config.load import read_yaml
from scdd.config.section import Section


class Arm(Section):
    """One set of settings."""

    name: str
    """Of its folders."""
    title: str = ""
    """In the table; not given: the name."""
    set: tuple[str, ...] = ()
    """`key=value`, after those that all arms have."""
    scores: tuple[str, ...] = ()
    """Whose accuracy is this arm's (`scores.py`); not given: that of the study."""
    against: str | None = None
    """The arm that this one is compared with; not given: the first."""
    paper: str = ""
    """What the paper found."""


class Study(Section):
    """What is compared, at which scale, and beside which table of the paper."""

    title: str
    paper: str
    """Where in SC-DD (arXiv:2404.07976) or elsewhere this was asked."""
    scale: Literal["cpu", "gpu"]
    needs_data: bool = False
    """Whether the preset's images have to be named by --data."""
    preset: str
    set: tuple[str, ...] = ()
    """Changes of the preset in all arms."""
    seeds: PositiveInt = 3
    """Runs of every arm."""
    scores: tuple[str, ...] = ("distilled, soft",)
    arms: tuple[Arm, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _arms_can_be_compared(self) -> Self:
        names = [arm.name for arm in self.arms]
        for number, arm in enumerate(self.arms):
            if names.count(arm.name) > 1:
                raise ValueError(f"arms: {arm.name} stands there twice; name it once")
            if arm.name in (".", "..") or not arm.name or {"/", "\\"} & {*arm.name}:
                raise ValueError(f"arms: {arm.name!r} cannot be the name of a folder")
            if arm.against is not None and arm.against not in names[:number]:
                known = ", ".join(names[:number]) or "none"
                raise ValueError(
                    f"arms: {arm.name} is against {arm.against}, but the arms before it are {known}"
                )
            if arm.scores and len(arm.scores) != len(self.scores):
                raise ValueError(
                    f"arms: {arm.name} has {len(arm.scores)} scores, but the study has "
                    f"{len(self.scores)}"
                )
        return self

    def control(self, arm: Arm) -> str:
        """Name of the arm that this one is compared with."""
        return arm.against or self.arms[0].name


def read_study(path: Path) -> Study:
    """Read a study.

    Raises:
        ConfigError: if it cannot be read, or a key is unknown or wrong.
    """
    return checked(Study, read_yaml(path), f"{path}: ", inner=Arm)


def paired(differences: Sequence[float]) -> dict[str, Any]:
    """Mean of paired differences, its standard error, and `+`, `-` or `0` by two of them.

    One difference has no error, and so no verdict.
    """
    count = len(differences)
    middle = fmean(differences)
    if count < 2:
        return {"mean": middle, "error": None, "n": count, "verdict": None}
    error = stdev(differences) / count**0.5
    verdict = "0" if abs(middle) <= 2 * error else "+" if middle > 0 else "-"
    return {"mean": middle, "error": error, "n": count, "verdict": verdict}


def differences(study: Study, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Each arm beside what it is compared with, seed by seed, for every score; arms that have some.

    Args:
        study: what was asked.
        rows: finished runs: arm, seed and scores (one for each of the study's).
    """
    found = {}
    scores = {(row["arm"], row["seed"]): row["scores"] for row in rows}
    for arm in study.arms[1:]:
        seeds = [
            seed
            for name, seed in scores
            if name == arm.name and (study.control(arm), seed) in scores
        ]
        if seeds:
            found[arm.name] = [
                paired([scores[arm.name, s][n] - scores[study.control(arm), s][n] for s in seeds])
                for n in range(len(study.scores))
            ]
    return found
