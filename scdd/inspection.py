"""`scdd inspect`: what a distilled file holds, in lines for people."""

from pathlib import Path
from typing import Any

from scdd.distilled import DistilledFile, verify
from scdd.errors import FormatError
from scdd.tables import size


def describe(path: Path, thorough: bool) -> str:
    """Return a description of a distilled file.

    Args:
        path: the file.
        thorough: also read everything and check digests, ranges and finiteness.

    Raises:
        FormatError: if it is not a readable distilled file, or `thorough` finds a fault.
    """
    with DistilledFile(path) as file:
        header = file.header
        images = file.images()
        views = file.views
    per_class = f"ipc {header.ipc}" if header.ipc is not None else f"budget {header.budget_n}"
    lines = [
        f"{path} ({size(path.stat().st_size)})",
        f"  method       {header.method}, recipe {header.recipe}, seed {header.seed}",
        f"  dataset      {header.dataset}, {len(header.class_names)} classes: "
        + _some(header.class_names),
        f"  images       {len(images)} of {header.image_size} px, {per_class}, {header.kind}",
        f"  soft labels  {_labels(header.target_kind, views)}",
        f"  teacher      {_teacher(header.teacher)}",
        f"  made by      scdd {header.versions.get('scdd', '?')}, "
        f"torch {header.versions.get('torch', '?')}, {header.created}",
        f"  digest       {header.digest}",
    ]
    if thorough:
        faults = verify(path)
        if faults:
            raise FormatError(f"{path}: {'; '.join(faults)}; make or download it again")
        lines.append("  verified     every digest, shape and range is right")
    return "\n".join(map(printable, lines))


def printable(text: str) -> str:
    """Replace what a terminal would obey instead of show; a file's texts may come from anyone."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _teacher(teacher: dict[str, Any] | None) -> str:
    if not teacher:
        return "none recorded"
    top1 = teacher.get("val_top1")
    score = f"{top1:.1f} %" if isinstance(top1, int | float) else "unknown"
    return (
        f"{teacher.get('arch', 'unknown')}, {teacher.get('objective', 'unknown objective')}, "
        f"validation top-1 {score}, BatchNorm {teacher.get('bn', 'unknown')}"
    )


def _labels(target_kind: str, views: object) -> str:
    if views is None:
        return "none"
    count, ops = views.count(), ", ".join(views.ops)  # type: ignore[attr-defined]
    return f"{target_kind} on {count} views an image ({ops or 'whole images'})"


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:6])
    return shown + (", ..." if len(names) > 6 else "")
