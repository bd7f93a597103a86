"""How the scripts here fail: in one sentence, without a traceback, where the user can mend it."""

import sys
from collections.abc import Callable

from scdd.errors import RunError, UserError


def in_a_sentence(main: Callable[[], None]) -> None:
    """Run a script with the exit codes of `scdd`: 2 for a UserError, 1 for a RunError, 130 stopped.

    For scripts that keep what is finished.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped: what is finished is kept; run the same command again", file=sys.stderr)
        sys.exit(130)
