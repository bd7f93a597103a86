"""What a command says: the one sentence of a refusal, and the rows of a table."""

import subprocess
from collections.abc import Callable

from tests.conftest import Outcome

Run = Callable[..., Outcome]


def refused(outcome: Outcome | subprocess.CompletedProcess[str], *said: str) -> str:
    """Check that a command refused its input in one sentence with these words; return it."""
    assert outcome.returncode == 2, outcome.stderr
    lines = outcome.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), outcome.stderr
    for words in said:
        assert words in lines[0], lines[0]
    return lines[0]


def cells(outcome: Outcome) -> dict[str, list[str]]:
    """Rows of the printed table: first cell to the others."""
    assert outcome.returncode == 0, outcome.stderr
    lines = [line for line in outcome.stdout.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in rows[2:]}
