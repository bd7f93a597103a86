"""Which files of a study go into its pieces, and how long writing these may take."""

import time
from collections.abc import Callable, Collection
from pathlib import Path

SMALL = 10_000
"""Bytes of a file that goes before the larger ones."""
BYTES_A_SECOND = 50e6
"""Assumed of writing pieces, to end in time."""
SECONDS_KEPT = 10.0
"""How long what writing takes is not counted anew."""
CHEAP = ("*.tmp", "study.lock", "*.link", "log.txt", "gallery.png", "*losses.png")
"""Made again whenever they are needed."""
SHARED = ("squeeze", "probe", "recover", "select", "condense")
"""How the names of steps begin that take long and that other runs may have in common."""


def needed(folder: Path, over: Collection[str] = ()) -> list[Path]:
    """The files of a study without which it could not go on, the small ones first.

    Of the jobs that are `over` only what other runs may share is, and takes long to make.
    """
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(
        (path for path in paths if not _is_cheap(path.relative_to(folder), over)),
        key=lambda path: (path.stat().st_size > SMALL, str(path)),
    )


def reserve(folder: Path, over: Callable[[], Collection[str]]) -> Callable[[], float]:
    """Tells how many seconds writing all that is needed as pieces may take, as the folder grows."""
    counted, seconds = 0.0, 0.0

    def count() -> float:
        nonlocal counted, seconds
        if not seconds or time.monotonic() - counted > SECONDS_KEPT:
            found = [path.stat() for path in needed(folder, over())]
            sizes = {about.st_ino: about.st_size for about in found}  # Links are written once.
            counted, seconds = time.monotonic(), 1 + sum(sizes.values()) / BYTES_A_SECOND
        return seconds

    return count


def _is_cheap(path: Path, over: Collection[str]) -> bool:
    top, name, step = (*path.parts, "", "", "")[:3]
    if top in ("runs", "apps", "scripts") and name in over:
        return top != "runs" or len(path.parts) == 3 or not step.startswith(SHARED)
    features = any(part.startswith("features") for part in path.parts[3:-1])  # Of probe.
    old = any(part.startswith(".") for part in path.parts)  # Moved aside, or half made.
    return features or old or any(path.match(pattern) for pattern in CHEAP)
