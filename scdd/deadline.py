"""The time that a process is given: work stops before it is over, where nothing is lost.

It decides when a state is saved, never what is computed, and is part of no file.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from scdd.errors import OutOfTime


@dataclass
class Pace:
    """How long one step takes from one place to stop at to the next: the longest seconds so far."""

    start: float = 0.0
    """From its beginning in a process to its first place to stop."""
    gap: float = 0.0
    """From one such place to the next, or to the end of the step."""
    save: float = 0.0
    """To write its state."""


class Deadline:
    """`seconds` from now on. What is not known yet of a step is taken to fit.

    Args:
        seconds: given to this process.
        paces: of steps by name, as far as they are known; what is learnt is kept in them.
        reserve: seconds that are wanted for what follows, asked anew each time.
    """

    def __init__(
        self,
        seconds: float,
        paces: dict[str, Pace] | None = None,
        reserve: Callable[[], float] = float,
    ) -> None:
        self._ends, self._reserve = time.monotonic() + seconds, reserve
        self.paces = {} if paces is None else paces
        self.spent: dict[str, float] = {}
        """Seconds in each step, by name."""
        self._step, self._pace = "", Pace()
        self._begun = self._last = time.monotonic()
        self._fresh, self._entered, self._stopping = True, False, False

    @property
    def left(self) -> float:
        """Seconds until it is over."""
        return self._ends - time.monotonic() - self._reserve()

    def begin(self, step: str) -> None:
        """Say that a step begins.

        Raises:
            OutOfTime: if its first place to stop cannot be reached.
        """
        known = self.paces.get(step, Pace())
        if self.left <= known.start + known.save:
            raise OutOfTime(f"too little time is left to begin {step}")
        self._step, self._pace = step, self.paces.setdefault(step, known)
        self._begun = self._last = time.monotonic()
        self._fresh, self._entered, self._stopping = True, False, False

    def near(self) -> bool:
        """Whether to save here and stop: the next place to do so cannot be reached in time."""
        self._measure()
        self._stopping = self.left <= self._pace.gap + self._pace.save
        return self._stopping

    def saved(self, seconds: float) -> None:
        """Say that a state is saved, which took so long.

        Raises:
            OutOfTime: if that was to stop.
        """
        self._pace.save = max(self._pace.save, seconds)
        self._last = time.monotonic()
        if self._stopping:
            self._stop()

    def between(self) -> None:
        """Say that one part of a step is safe and the next has not begun.

        Raises:
            OutOfTime: if the next place to stop cannot be reached in time.
        """
        if not self._entered:
            self._entered = True  # Nothing is done yet; `begin` has just looked.
            return
        self._measure()
        if self.left <= self._pace.gap:
            self._stop()

    def end(self) -> None:
        """Say that the step is done, or given up."""
        self._measure()
        self._spend()

    def _measure(self) -> None:
        now = time.monotonic()
        if self._fresh:
            self._pace.start = max(self._pace.start, now - self._last)
        else:
            self._pace.gap = max(self._pace.gap, now - self._last)
        self._last, self._fresh, self._entered = now, False, True

    def _stop(self) -> None:
        self._spend()
        raise OutOfTime(f"the time is over in the midst of {self._step}")

    def _spend(self) -> None:
        before = self.spent.get(self._step, 0.0)
        self.spent[self._step] = before + time.monotonic() - self._begun
