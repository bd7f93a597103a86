"""Where and with what a result came to be, without the folders of whoever measured it."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from record import without_folder, without_roots

from scdd.config.run import RunConfig
from scdd.errors import ConfigError
from scdd.run import environment

PNG = b"\x89PNG\r\n\x1a\n"
"""How such files begin."""


def measured_on(device: torch.device, threads: int | None = None) -> dict[str, Any]:
    """Hardware, versions and command; `threads` of the CPU, if not those of torch."""
    about = environment(str(device), threads or torch.get_num_threads())
    about["command"] = shlex.join(map(without_folder, sys.argv))
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    return about


def without_paths(cfg: RunConfig) -> dict[str, Any]:
    """The configuration, with the last part of the folders of images only."""
    return without_roots(cfg.model_dump(mode="json"))


def refuse_other_result(path: Path | None, schema: str, study: str | None = None) -> None:
    """Refuse to replace a file that is not an earlier result of the same kind.

    Raises:
        ConfigError: saying what it is instead, or that its folder cannot be written to.
    """
    if path is None:
        return
    _refuse_unwritable(path)
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        before, asked = found["schema"], found.get("study")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is no result file; choose another name") from error
    if (before, asked) != (schema, study):
        theirs, ours = (f" of the study {name}" if name else "" for name in (asked, study))
        raise ConfigError(
            f"{path}: holds '{before}'{theirs}, not '{schema}'{ours}; choose another name"
        )


def refuse_other_picture(path: Path | None) -> None:
    """Refuse to write a picture over what is none, or under a name that says something else.

    Raises:
        ConfigError: if it is not `.png`, or there is a file that is no PNG.
    """
    if path is None:
        return
    _refuse_unwritable(path)
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{path}: pictures are PNG; choose a name that ends in .png")
    if path.exists() and (path.is_dir() or path.read_bytes()[:8] != PNG):
        raise ConfigError(f"{path}: is no picture; choose another name")


def _refuse_unwritable(path: Path) -> None:
    """Find out before measuring, not after, that the outcome has no place."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"{path}: {folder} cannot be written to; choose another folder")
