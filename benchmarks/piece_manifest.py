"""The manifest of pieces: read whole, and refused in a sentence where it or a piece is damaged."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scdd.errors import UserError
from scdd.files import sha256_of

SCHEMA = "scdd pieces 1"
MANIFEST = "manifest.json"
EMPTY: dict[str, Any] = {"pieces": {}, "parts": {}}
"""Of a folder without pieces."""


def read_manifest(pieces: Path, title: str) -> dict[str, Any]:
    """Read the manifest of pieces.

    Raises:
        UserError: if it is damaged, of another study, or names files that lie elsewhere.
    """
    path = pieces / MANIFEST
    try:
        manifest = dict(json.loads(path.read_text(encoding="utf-8")))
        schema, study = manifest["schema"], manifest["study"]
        files = [entry for entry in manifest["files"] if "link" not in entry]
        links = [entry for entry in manifest["files"] if "link" in entry]
        places = [str(entry["path"]) for entry in files]
        places += [str(entry[key]) for entry in links for key in ("path", "link")]
        wanted = {key for entry in files for key in entry["parts"]}
        assert isinstance(manifest["turn"], int) and all("bf16" in entry for entry in files)
        assert wanted <= manifest["parts"].keys()
        assert {name for name, _, _ in manifest["parts"].values()} <= manifest["pieces"].keys()
        assert all(piece.keys() >= {"bytes", "sha256"} for piece in manifest["pieces"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise damaged(path) from error
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


def check_pieces(pieces: Path, manifest: Mapping[str, Any]) -> None:
    """Read all pieces.

    Raises:
        UserError: naming the first that is missing or damaged.
    """
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


def damaged(manifest: Path) -> UserError:
    """What is said of a manifest that cannot serve."""
    return UserError(f"{manifest}: is damaged; bring it anew, or choose another --pieces")
