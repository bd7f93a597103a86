"""Progress for people: a bar with ETA on a terminal, a plain line now and then in a log."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

RANK = "RANK"
"""Where torchrun says which of several processes this is; only the first one speaks."""

SECONDS_BETWEEN_LINES = 10.0


class Bar:
    """Counts `total` units of work under `label`; `done` of them were done before."""

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self._started, self._first = time.monotonic(), done
        self._last_line = self._started
        self._rich: Progress | None = None

    def __enter__(self) -> Self:
        console = Console(file=sys.stderr)
        if console.is_terminal and _speaks():
            self._rich = Progress(
                TextColumn("{task.description:<22}"),
                BarColumn(bar_width=30),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("[dim]{task.fields[note]}"),
                console=console,
            )
            self._rich.start()
            self._task = self._rich.add_task(
                self.label, total=self.total, completed=self.done, note=""
            )
        return self

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count `units` more as done; `note` (a loss, say) stands behind the bar."""
        self.done += units
        if self._rich is not None:
            self._rich.update(self._task, completed=self.done, note=note)
            return
        now = time.monotonic()
        due = now - self._last_line >= SECONDS_BETWEEN_LINES
        if due and self.done < self.total and _speaks():
            self._last_line = now
            rate = (self.done - self._first) / (now - self._started)
            eta = (self.total - self.done) / rate if rate > 0 else float("inf")
            print(
                f"  {self.label}: {self.done}/{self.total}, ETA {duration(eta)}"
                + (f", {note}" if note else ""),
                file=sys.stderr,
                flush=True,
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._rich is not None:
            self._rich.stop()


def track(iterable: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yield the items of `iterable` under a bar of `total` units."""
    with Bar(label, total) as bar:
        for item in iterable:
            yield item
            bar.advance()


def say(line: str) -> None:
    """Print a line, once for all processes of a run."""
    if _speaks():
        print(line, flush=True)


def duration(seconds: float) -> str:
    """Write a time for people: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds == float("inf"):
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _speaks() -> bool:
    return os.environ.get(RANK, "0") == "0"
