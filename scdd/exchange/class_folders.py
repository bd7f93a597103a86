"""Class names as folder names that every disk takes, and classes.json, which says them in full."""

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scdd.errors import DataError

CLASSES = "classes.json"
FORMAT = "scdd class folders"
NO_CLASS = "no_class"
"""Folder of the images without a class, unless a class has that name."""

_LONGEST = 120
"""Bytes of a folder name; most disks take 255, and some programs a path of no more than 260."""
_REFUSED = re.compile(r'[<>:"/\\|?*]')
_RESERVED = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[\d\xb9\xb2\xb3])(\..*)?", re.IGNORECASE
)
"""Devices on Windows, with any ending."""


@dataclass(frozen=True)
class ClassFolder:
    """A folder of images of one class, or of none."""

    folder: str
    name: str | None
    """Name of the class; None: the images have none."""
    label: int
    images: int


def folder_names(names: Sequence[str]) -> list[str]:
    """Return a safe folder name for each name, all different whether or not letters have a case.

    A name that is safe as it is stays, and wins over others that come out the same.
    """
    safe = [_safe(name) for name in names]
    order = sorted(range(len(names)), key=lambda at: safe[at] != names[at])
    taken: set[str] = set()
    found = [""] * len(names)
    for at in order:
        candidate, number = safe[at], 1
        while _alike(candidate) in taken:
            number += 1
            candidate = f"{safe[at]}_{number}"
        taken.add(_alike(candidate))
        found[at] = candidate
    return found


def write_classes(path: Path, classes: Sequence[ClassFolder]) -> None:
    """Write classes.json: which folder is which class."""
    folders = {c.folder: {"name": c.name, "label": c.label, "images": c.images} for c in classes}
    content = json.dumps({"format": FORMAT, "folders": folders}, indent=2)
    path.write_text(content + "\n", encoding="utf-8")


def read_classes(path: Path) -> list[ClassFolder] | None:
    """Read classes.json; None if there is none, or one that scdd did not write.

    Raises:
        DataError: if it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}); repair or remove it") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return None
    try:
        found = [_class_folder(*item) for item in content["folders"].items()]
        labels = sorted(c.label for c in found if c.name is not None)
        if labels != list(range(len(labels))) or not labels:
            raise ValueError("labels are not 0, 1, 2, ..")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: is damaged ({error}); export the images again") from error
    return found


def _class_folder(folder: str, about: dict[str, Any]) -> ClassFolder:
    name, label, images = about["name"], about["label"], about["images"]
    if type(label) is not int or type(images) is not int or images < 0:
        raise ValueError(f"label or number of images of {folder!r} is no number")
    if not isinstance(name, str) and (name is not None or label != -1):
        raise ValueError(f"the name of {folder!r} is no text")
    return ClassFolder(folder, name, label, images)


def _safe(name: str) -> str:
    """Replace what a path, a disk or a terminal would not take as part of a name."""
    text = "".join(letter if letter.isprintable() else "_" for letter in name)
    text = _REFUSED.sub("_", text).strip().encode()[:_LONGEST].decode(errors="ignore").strip()
    # A leading dot hides a folder, Windows drops trailing ones.
    text = re.sub(r"^\.+|\.+$", lambda dots: "_" * len(dots[0]), text)
    return f"_{text}" if not text or _RESERVED.fullmatch(text) else text


def _alike(name: str) -> str:
    """Equal for names that a disk may take for the same."""
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold())
