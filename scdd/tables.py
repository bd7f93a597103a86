"""Tables that read the same on a terminal and in Markdown."""

import math
from collections.abc import Sequence


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align cells into a Markdown table; the first column is text, the others are right-aligned."""
    cells = [list(headers), *[list(row) for row in rows]]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([line(cells[0]), line(rule), *(line(row) for row in cells[1:])])


def mean_sd(values: Sequence[float]) -> str:
    """`95.3 +- 0.4` over several seeds, `95.3` for one, `n/a` for none."""
    if not values:
        return "n/a"
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.1f}"
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{mean:.1f} +- {sd:.1f}"


def counted(count: int, what: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def change(before: float, after: float) -> str:
    """How much less or more something has become: `39 % less`."""
    share = 100 * (after / before - 1)
    return f"{abs(share):.0f} % {'less' if share <= 0 else 'more'}"


def size(count: float) -> str:
    """Bytes for people: `812 B`, `3.4 MB`, powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
