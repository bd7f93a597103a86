"""The folder of a study as files of a limited size, and back, for places that keep nothing.

`manifest.json` says which files there are and of which parts they consist; the parts lie in
`0001.piece`, `0002.piece` and so on. Parts are told apart by their content: what several files have
in common, such as a backbone and the teacher made of it, is written once, and a piece whose parts
are all still of use stays as it is.
"""

import argparse
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from piece_files import needed
from piece_manifest import EMPTY, MANIFEST, SCHEMA, check_pieces, damaged, read_manifest
from piece_parts import as_bf16, cuts_of, from_bf16
from study_folder import history_of, locked, turn_of

from scdd.errors import UserError
from scdd.files import (
    link_or_copy,
    refuse_if_full,
    replacing,
    sync_folder,
    write_json,
)
from scdd.progress import say
from scdd.tables import counted, size

UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "": 1.0}
LEAST_PIECE = 10_000


def parse_size(text: str) -> int:
    """Bytes of `15MB`, `500kB` or a number.

    Raises:
        argparse.ArgumentTypeError: if it is none, or too small to be of use.
    """
    found = re.fullmatch(r"([\d.]+) ?(kB|MB|GB|)", text)
    try:
        count = int(float(found[1]) * UNITS[found[2]]) if found else 0
    except ValueError:
        count = 0
    if count < LEAST_PIECE:
        raise argparse.ArgumentTypeError(f"{text}: wants 15MB, say, and at least 10kB")
    return count


def check_place(pieces: Path, folder: Path) -> None:
    """Refuse a folder in which the pieces of a study cannot be, or make it.

    Raises:
        UserError: if it is no folder, cannot be written, or lies in the folder of the study.
    """
    if folder.resolve() in (pieces.resolve(), *pieces.resolve().parents):
        raise UserError(f"--pieces {pieces}: lies in {folder}; choose a folder beside it")
    try:
        pieces.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(pieces, os.W_OK) else "no permission"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise UserError(
            f"--pieces {pieces}: cannot be written to ({reason}); choose another folder"
        )


def write_pieces(
    folder: Path,
    pieces: Path,
    title: str,
    turn: int,
    most: int,
    bf16: bool = False,
    over: Collection[str] = (),
) -> str:
    """Write what is new or changed; return a sentence on what is there now.

    Args:
        folder: of the study.
        pieces: where they go.
        title: of the study.
        turn: of its folder.
        most: bytes of a piece.
        bf16: store the moments of optimisers in checkpoints as bf16.
        over: as in `needed`.

    Raises:
        UserError: if there are pieces of another study.
        DiskFull: if there is no room; the pieces of before are then still there.
    """
    pieces.mkdir(parents=True, exist_ok=True)
    before = read_manifest(pieces, title) if (pieces / MANIFEST).exists() else EMPTY
    files, contents = _read_folder(folder, needed(folder, over), most, bf16)
    kept = [
        name
        for name, piece in before["pieces"].items()
        if _stays(name, piece, before, most, contents)
    ]
    layout = {key: place for key, place in before["parts"].items() if place[0] in kept}
    made = {name: before["pieces"][name] for name in kept}
    free = (f"{n:04d}.piece" for n in count(1) if f"{n:04d}.piece" not in before["pieces"])
    content = _reader()
    try:
        for group in _packed([key for key in contents if key not in layout], contents, most):
            name, data = next(free), b"".join(content(contents[key]) for key in group)
            with replacing(pieces / name) as temporary:
                temporary.write_bytes(data)
            made[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            offset = 0
            for key in group:
                layout[key] = [name, offset, contents[key].bytes]
                offset += contents[key].bytes
    except OSError as error:
        refuse_if_full(pieces, error)
        raise
    manifest = {"schema": SCHEMA, "study": title, "turn": turn, "history": history_of(folder)}
    write_json(pieces / MANIFEST, manifest | {"pieces": made, "files": files, "parts": layout})
    for path in pieces.glob("[0-9]*.piece"):
        if path.name not in made:
            path.unlink()  # Ours, and all that is of use in it lies in another by now.
    total = sum(piece["bytes"] for piece in made.values())
    new = len(made) - len(kept)
    return f"{pieces}: {counted(len(made), 'piece')} of {size(total)} in all, {new} of them new"


def fill_from(pieces: Path, folder: Path, title: str) -> None:
    """Make the folder of a study what the pieces hold, if that is newer than what is there.

    What was there is moved aside.

    Raises:
        UserError: naming the piece that is missing, damaged or of another study, or if neither of
            the two is made of the other.
        DiskFull: if there is no room; the folder is then as it was.
    """
    if not (pieces / MANIFEST).exists():
        left = sorted(pieces.glob("[0-9]*.piece"))
        if left:
            raise UserError(
                f"{pieces / MANIFEST}: is missing, though there is {left[0].name}; bring it too, "
                "or choose another --pieces"
            )
        return
    manifest, turn = read_manifest(pieces, title), turn_of(folder, title)
    ours, theirs = history_of(folder), manifest.get("history")
    if ours and theirs and ours[-1] not in theirs and theirs[-1] not in ours:
        raise UserError(
            f"{folder}: was gone on with, and so was another copy, of which the pieces in {pieces} "
            "are; move one of the two away"
        )
    if turn > manifest["turn"]:
        say(f"{folder}: is newer than the pieces in {pieces}, and gone on with")
    if turn >= manifest["turn"]:
        return
    check_pieces(pieces, manifest)
    filling = folder.absolute().with_name(f".{folder.absolute().name}.filling")
    shutil.rmtree(filling, ignore_errors=True)
    try:
        for entry in manifest["files"]:
            _restore(pieces, manifest, entry, filling)
        os.sync()
        if folder.exists():
            with locked(folder):  # Nobody is at work in what is moved.
                folder.rename(_aside(folder.absolute()))
        filling.rename(folder)
    except OSError as error:
        refuse_if_full(folder, error)
        raise
    finally:
        shutil.rmtree(filling, ignore_errors=True)
    sync_folder(folder.absolute().parent)
    say(f"{folder}: taken up from {counted(len(manifest['pieces']), 'piece')} in {pieces}")


class Part(NamedTuple):
    """Where the content of a part lies."""

    path: Path
    first: int
    bytes: int
    bf16: bool


def _read_folder(
    folder: Path, paths: Iterable[Path], most: int, bf16: bool
) -> tuple[list[dict[str, Any]], dict[str, Part]]:
    """Every file as a list of parts, and the parts by their digest; links are told as links."""
    files: list[dict[str, Any]] = []
    contents: dict[str, Part] = {}
    names: dict[tuple[int, int], str] = {}
    for path in paths:
        about, name = path.stat(), str(path.relative_to(folder))
        first_name = names.setdefault((about.st_dev, about.st_ino), name)
        if first_name != name:
            files.append({"path": name, "link": first_name})
            continue
        smaller = bf16 and path.suffix == ".checkpoint"
        data, keys = _data(path, smaller), []
        for first, last in cuts_of(data, path.suffix, most):
            keys.append(hashlib.sha256(data[first:last]).hexdigest())
            contents.setdefault(keys[-1], Part(path, first, last - first, smaller))
        files.append({"path": name, "parts": keys, "bf16": smaller})
    return files, contents


def _data(path: Path, bf16: bool) -> bytes:
    data = path.read_bytes()
    return as_bf16(data) if bf16 else data


def _reader() -> Callable[[Part], bytes]:
    """Reads parts; a file that has to be changed is changed once for all parts in a row."""
    changed = lru_cache(maxsize=1)(lambda path: _data(path, True))

    def content(part: Part) -> bytes:
        if part.bf16:
            return changed(part.path)[part.first : part.first + part.bytes]
        with part.path.open("rb") as file:
            file.seek(part.first)
            return file.read(part.bytes)

    return content


def _stays(
    name: str,
    piece: Mapping[str, Any],
    before: Mapping[str, Any],
    most: int,
    contents: Iterable[str],
) -> bool:
    """Whether a piece is worth keeping: not small, and all of it still of use."""
    return most / 2 <= piece["bytes"] <= most and all(
        key in contents for key, place in before["parts"].items() if place[0] == name
    )


def _packed(keys: Sequence[str], contents: Mapping[str, Part], most: int) -> list[list[str]]:
    """Parts in groups of at most `most` bytes, each in the first that has room."""
    groups: list[list[str]] = []
    room: list[int] = []
    for key in keys:
        wanted = contents[key].bytes
        number = next((n for n, left in enumerate(room) if left >= wanted), len(groups))
        if number == len(groups):
            groups.append([])
            room.append(most)
        groups[number].append(key)
        room[number] -= wanted
    return groups


def _restore(
    pieces: Path, manifest: Mapping[str, Any], entry: Mapping[str, Any], target: Path
) -> None:
    path = target / entry["path"]
    path.parent.mkdir(parents=True, exist_ok=True)
    if "link" in entry:
        link_or_copy(target / entry["link"], path)
        return
    parts = []
    for key in entry["parts"]:
        name, offset, length = manifest["parts"][key]
        with (pieces / name).open("rb") as file:
            file.seek(offset)
            parts.append(file.read(length))
        if hashlib.sha256(parts[-1]).hexdigest() != key:
            raise damaged(pieces / MANIFEST)
    data = b"".join(parts)
    path.write_bytes(from_bf16(data) if entry["bf16"] else data)


def _aside(folder: Path) -> Path:
    aside = folder.with_name(time.strftime(f"{folder.name}.old-%Y%m%d-%H%M%S"))
    while aside.exists():
        aside = aside.with_name(aside.name + "-")
    return aside
