"""What was made of a weights file: the backbone, and a report."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from scdd.foreign.heads import Head


@dataclass(frozen=True)
class Report:
    """What was made of a file."""

    layout: str
    matched: int
    """Backbone weights, all of which were there."""
    stem: str
    head: str
    """Where the classifier was found, or why there is none."""
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Tensors by where they stand."""
    missing: tuple[str, ...] = ()
    """Counters of BatchNorm that the file lacks and nothing needs."""

    def lines(self) -> list[str]:
        """For people, one fact a line."""
        groups = ", ".join(f"{where} {count}" for where, count in self.ignored.items())
        return [
            f"layout: {self.layout}",
            f"matched: all {self.matched} backbone weights",
            f"ignored: {groups or 'nothing'}",
            f"missing: {f'{len(self.missing)} batch counters' if self.missing else 'nothing'}",
            f"head: {self.head}",
            f"stem: {self.stem}",
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())


@dataclass(frozen=True)
class Loaded:
    """A backbone with weights of a file."""

    backbone: nn.Module
    """Of `create_model`, with num_classes 0."""
    head: Head | None
    report: Report
    objective: str
    """What it was trained with, or "unknown"."""
    epoch: int | None
    """How long it was trained, if scdd or the registry says so."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """Normalisation in training, if scdd or the registry says so."""
