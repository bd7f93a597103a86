"""What is compared, told in one way for files of any kind: networks, how they are trained, rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from scdd.checkpoint import Checkpoint
from scdd.progress import Bar
from scdd_apps.crossarch.options import Tuning

Row = dict[str, Any]


class Learner(Protocol):
    """One network to train: from which images, how."""

    @property
    def arm(self) -> str: ...
    @property
    def arch(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def kinds(self) -> tuple[str, ...]:
        """The scores that it gets."""

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that decide the trained network."""


L = TypeVar("L", bound=Learner)


class Forecast(NamedTuple):
    """What is said of networks of one architecture before they are trained."""

    parameters: int
    training: str
    seconds: float
    """Of all of them."""


@dataclass(frozen=True)
class Compared(Generic[L]):
    """Networks to train on a file, and all that depends on what it holds."""

    learners: Sequence[L]
    tuning: Tuning
    kinds: tuple[str, ...]
    """All scores that there are."""
    arms: Mapping[str, str]
    """What networks learn from, in the order of the rows; or why nothing can be learnt from it."""
    learnt_from: str
    """Heads the column of the arms."""
    measured: tuple[str, ...]
    """Columns of the CSV file that a finished row fills."""
    key: Callable[[L], dict[str, Any]]
    """The settings that a row is found again by."""
    units: Callable[[L], int]
    """Of progress that a network is."""
    forecast: Callable[[Sequence[L]], Forecast]
    train: Callable[[L, Checkpoint, Bar], Row]
    notes: Callable[[Mapping[L, Row]], list[str]]
    """Lines below the table: what the numbers are, how networks were trained."""
    published: tuple[str, dict[str, Any]] | None
    """What papers say of such a file: for the report, and for results.json."""

    @property
    def archs(self) -> tuple[str, ...]:
        """The architectures, in the order of the rows."""
        return tuple(dict.fromkeys(learner.arch for learner in self.learners))


def by_kind(row: Row) -> dict[str, Row]:
    """The row of each score: `labels` says which it is, or `by` where one network has several."""
    if "scores" not in row:
        return {row["labels"]: row}
    rest = {name: value for name, value in row.items() if name != "scores"}
    return {kind: {**rest, "by": kind, **score} for kind, score in row["scores"].items()}


def kind_key(kind: str) -> str:
    """Under what results have a kind of score."""
    return "labels" if kind in ("soft", "hard") else "by"


def kind_title(kind: str) -> str:
    """What tables and pictures call it."""
    return f"{kind} labels" if kind_key(kind) == "labels" else kind
