"""The folder of a study as files of a limited size, and back, for places that keep nothing.

`manifest.json` says which files there are and of which parts they consist; the parts lie in
`0001.piece`, `0002.piece` and so on. Parts are told apart by their content: what several files have
in common, such as a backbone and the teacher made of it, is written once, and a piece whose parts
are all still of use stays as it is.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from piece_parts import as_bf16, cuts_of, from_bf16
from study_folder import turn_of

from scdd.errors import UserError
from scdd.files import (
    link_or_copy,
    refuse_if_full,
    replacing,
    sha256_of,
    sync_folder,
    write_json,
)
from scdd.progress import say
from scdd.tables import counted, size

SCHEMA = "scdd pieces 1"
MANIFEST = "manifest.json"
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "": 1.0}
LEAST_PIECE = 10_000
BYTES_A_SECOND = 50e6
"""Assumed of writing pieces, to end in time."""
CHEAP = ("*.tmp", "study.lock", "*.link", "log.txt", "gallery.png", "*losses.png")
"""Made again whenever they are needed."""
SHARED = ("squeeze", "probe", "recover", "select", "condense")
"""How the names of steps begin that take long and that other runs may have in common."""


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


def seconds_to_write(folder: Path, over: Collection[str] = ()) -> float:
    """How long writing all of a folder as pieces may take."""
    return 1 + sum(path.stat().st_size for path in needed(folder, over)) / BYTES_A_SECOND


def needed(folder: Path, over: Collection[str] = ()) -> list[Path]:
    """The files of a study without which it could not go on, the small ones first.

    Of the jobs that are `over` only what other runs may share is, and takes long to make.
    """
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(
        (path for path in paths if not _is_cheap(path.relative_to(folder), over)),
        key=lambda path: (path.stat().st_size > LEAST_PIECE, str(path)),
    )


def _is_cheap(path: Path, over: Collection[str]) -> bool:
    top, name, step = (*path.parts, "", "", "")[:3]
    if top in ("runs", "apps", "scripts") and name in over:
        return top != "runs" or len(path.parts) == 3 or not step.startswith(SHARED)
    features = any(part.startswith("features") for part in path.parts[:-1])  # Of probe.
    old = any(part.startswith(".") for part in path.parts)  # Moved aside, or half made.
    return features or old or any(path.match(pattern) for pattern in CHEAP)


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
    before = _read_manifest(pieces, title) if (pieces / MANIFEST).exists() else EMPTY
    files, contents = _read_folder(folder, needed(folder, over), most, bf16)
    kept = [
        name
        for name, piece in before["pieces"].items()
        if _stays(name, piece, before, most, contents)
    ]
    layout = {key: place for key, place in before["parts"].items() if place[0] in kept}
    made = {name: before["pieces"][name] for name in kept}
    free = (f"{n:04d}.piece" for n in count(1) if f"{n:04d}.piece" not in before["pieces"])
    try:
        for group in _packed([key for key in contents if key not in layout], contents, most):
            name, data = next(free), b"".join(_content(contents[key]) for key in group)
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
    manifest = {"schema": SCHEMA, "study": title, "turn": turn}
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
        UserError: naming the piece that is missing, damaged or of another study.
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
    manifest = _read_manifest(pieces, title)
    if turn_of(folder, title) >= manifest["turn"]:
        return
    _check_pieces(pieces, manifest)
    filling = folder.absolute().with_name(f".{folder.absolute().name}.filling")
    shutil.rmtree(filling, ignore_errors=True)
    try:
        for entry in manifest["files"]:
            _restore(pieces, manifest, entry, filling)
        os.sync()
    except OSError as error:
        refuse_if_full(filling, error)
        raise
    if folder.exists():
        folder.rename(_aside(folder.absolute()))
    filling.rename(folder)
    sync_folder(folder.absolute().parent)
    say(f"{folder}: taken up from {counted(len(manifest['pieces']), 'piece')} in {pieces}")


class Part(NamedTuple):
    """Where the content of a part lies."""

    path: Path
    first: int
    bytes: int
    bf16: bool


EMPTY: dict[str, Any] = {"pieces": {}, "parts": {}}


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


def _content(part: Part) -> bytes:
    if part.bf16:
        return _data(part.path, True)[part.first : part.first + part.bytes]
    with part.path.open("rb") as file:
        file.seek(part.first)
        return file.read(part.bytes)


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


def _read_manifest(pieces: Path, title: str) -> dict[str, Any]:
    path = pieces / MANIFEST
    try:
        manifest = dict(json.loads(path.read_text(encoding="utf-8")))
        schema, study = manifest["schema"], manifest["study"]
        places = [str(entry["path"]) for entry in manifest["files"]]
        assert isinstance(manifest["turn"], int) and isinstance(manifest["parts"], dict)
        assert isinstance(manifest["pieces"], dict)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"{path}: is damaged; bring it anew, or choose another --pieces") from error
    if schema != SCHEMA:
        raise UserError(f"{path}: holds '{schema}', not '{SCHEMA}'; choose another --pieces")
    if study != title:
        raise UserError(
            f"{path}: is of the study '{study}', not '{title}'; choose another --pieces"
        )
    for place in (*places, *manifest["pieces"]):
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise UserError(f"{path}: names {place}, which lies outside; choose another --pieces")
    return manifest


def _check_pieces(pieces: Path, manifest: Mapping[str, Any]) -> None:
    for name, piece in manifest["pieces"].items():
        if not (pieces / name).exists():
            raise UserError(
                f"{pieces / name}: is missing; bring it too, or choose another --pieces"
            )
        if sha256_of(pieces / name) != piece["sha256"]:
            raise UserError(
                f"{pieces / name}: is damaged, or of another time than {MANIFEST}; bring it anew, "
                "or choose another --pieces"
            )


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
    data = b"".join(parts)
    path.write_bytes(from_bf16(data) if entry["bf16"] else data)


def _aside(folder: Path) -> Path:
    aside = folder.with_name(time.strftime(f"{folder.name}.old-%Y%m%d-%H%M%S"))
    while aside.exists():
        aside = aside.with_name(aside.name + "-")
    return aside
