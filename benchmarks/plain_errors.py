"""How the scripts here fail: in one sentence, without a traceback, where the user can mend it."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from scdd.errors import OutOfTime, RunError, StaleStep, UserError

STOPPED = "stopped: what is finished is kept; run the same command again"


class Terminated(BaseException):
    """SIGTERM."""


def in_a_sentence(main: Callable[[], None]) -> None:
    """Run a script with the exit codes of `scdd`.

    2 for a UserError, 1 for a RunError or a file that cannot be used, 3 when the time that was
    given is over, 130 and 143 after Ctrl-C and SIGTERM. For scripts that keep what is finished.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OutOfTime as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        sys.exit(3)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        said = f"{where}{error.strerror or error}; check that it is there and may be written"
        print(f"error: {said}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        sys.exit(130)
    except Terminated:
        print(STOPPED, file=sys.stderr)
        sys.exit(143)


def without_redo(error: StaleStep, run: Path) -> str:
    """What is said of a stale step by those who have no --redo, as `scdd distill` has."""
    return f"{error} (here: move {run} away)"


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
