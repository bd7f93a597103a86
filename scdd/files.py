"""Files that are whole or absent: written under a temporary name, synced, then renamed."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scdd.errors import DiskFull, UserError
from scdd.tables import size

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_SPACE = "no space left to write it"
"""What is said of a full disk, by other processes too."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and takes the place of `path`.

    Raises:
        DiskFull: if the disk is full; `path` is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # Some writers make a file that only its owner can read.
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        refuse_if_full(path, error)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; on success it is synced and becomes `path`.

    Raises:
        UserError: if something is at `path`, other than an empty folder, or nothing can be made.
        DiskFull: if the disk is full; there is then nothing at `path`.
    """
    path = path.resolve()  # An empty folder may be given as `.`, or by a link.
    # Not named by the process: what a killed one left may have the same number in a container.
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise UserError(f"{path}: is there already; choose another --out")
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be made ({error.strerror}); choose another --out"
        ) from error
    try:
        yield temporary
        os.sync()  # Once for all; there may be thousands of files.
        temporary.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        refuse_if_full(path, error)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def scratch(path: Path, size: int) -> Iterator[Path]:
    """Yield a temporary file of `size` bytes beside `path`, all of them there, for use as memory.

    Raises:
        DiskFull: if the disk has no room for it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)  # Else a full disk would kill the process.
        yield temporary
    except OSError as error:
        refuse_if_full(path, error)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link_or_copy(made: Path, shown: Path) -> None:
    """Make the same file appear under another name; a copy where links do not work."""
    temporary = shown.with_name(f".{shown.name}.link")
    temporary.unlink(missing_ok=True)
    try:
        os.link(made, temporary)
    except OSError:
        shutil.copyfile(made, temporary)
    temporary.replace(shown)
    # Renaming onto another link of the same file does nothing, and leaves both.
    temporary.unlink(missing_ok=True)


def refuse_without_room(folder: Path, wanted: int, remedy: str) -> None:
    """Refuse to begin what the disk has no room for; `remedy` would make it smaller.

    Raises:
        DiskFull: if fewer bytes than wanted are free.
    """
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise DiskFull(
            f"{folder}: wants {size(wanted)} of disk, but {size(free)} are free; free some and run "
            f"the same command again, or {remedy}"
        )


def refuse_if_full(path: Path, error: OSError) -> None:
    """Turn the error of a full disk into a sentence.

    Raises:
        DiskFull: if it is that.
    """
    if error.errno in FULL:
        raise DiskFull(f"{path}: {NO_SPACE}; free some and run the same command again") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
