"""Tensors out of a weights file, and never anything that runs."""

import argparse
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from scdd.checkpoint import DAMAGED, load_checked, read_safetensors
from scdd.errors import CheckpointError

State = dict[str, Tensor]

UNREADABLE = (
    *DAMAGED,
    AssertionError,
    ArithmeticError,
    MemoryError,
    SafetensorError,
    struct.error,
)
"""What torch.load raises for a file that others wrote and that is damaged."""
MAX_NESTING = 4
"""Levels of dictionaries that are searched."""


@dataclass(frozen=True)
class Contents:
    """What a file holds."""

    states: dict[str, State]
    """Every dictionary of tensors by its place in the file, such as `state_dict`; '' is the top.

    Keys are without the wrappers `module.` and `_orig_mod.`.
    """
    about: dict[str, Any] | None
    """What scdd wrote about its own file; None for all others."""


def read(path: Path) -> Contents:
    """Read a .safetensors file, or one of torch.save that holds data alone.

    Raises:
        CheckpointError: if the file is missing, damaged, of another kind, or holds pickled code.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); check the path of the weights"
        ) from error
    if head[8:] == b"{":  # The length of a header in JSON comes first in a safetensors file.
        return _read_safetensors(path)
    found = _read_torch(path)
    states = {where: _unwrapped(state) for where, state in _states(found)}
    if not states:
        raise CheckpointError(f"{path}: holds no weights by name; give a file with a state dict")
    return Contents(states, None)


def _read_safetensors(path: Path) -> Contents:
    state, about = read_safetensors(path, "it is damaged or cut short, so fetch it again")
    if isinstance(about, dict):
        return Contents({"": state}, about)
    state = {name: tensor for name, tensor in state.items() if _is_weight(name, tensor)}
    return Contents({"": _unwrapped(state)}, None)


def _read_torch(path: Path) -> Any:
    try:
        # Harmless: an object with attributes. DINO's file holds the arguments of its training.
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            warnings.catch_warnings(action="ignore"),  # It ends in a sentence of ours or is none.
        ):
            return load_checked(path)
    except UNREADABLE as error:
        refused = _refused_code(error)
        if refused:
            raise CheckpointError(
                f"{path}: holds pickled code ({refused}), which scdd never runs; where you trust "
                "the file, load it with its own software and save the state dict alone"
            ) from None
        raise CheckpointError(
            f"{path}: is no weights file of torch.save or safetensors, or is cut short; fetch it "
            "again"
        ) from error


def _refused_code(error: Exception) -> str | None:
    """What torch refused to run, if that was the trouble."""
    message = str(error)
    if "TorchScript" in message:
        return "a TorchScript program"
    if not isinstance(error, UnpicklingError):
        return None
    named = re.search(r"GLOBAL ([\w.]+)", message)
    if named:
        return named[1]
    return "a call" if re.search(r"reduce|build instruction|instantiate", message, re.I) else None


def _states(found: Any) -> Iterator[tuple[str, State]]:
    """Every dictionary with tensors by name, outer ones first."""
    level: list[tuple[str, Any]] = [("", found)]
    seen = set()
    for _ in range(MAX_NESTING):
        inner = []
        for where, value in level:
            if not isinstance(value, Mapping) or id(value) in seen:
                continue
            seen.add(id(value))
            state = {name: item for name, item in value.items() if _is_weight(name, item)}
            if state:
                yield where, state
            inner += [
                (f"{where}.{name}" if where else str(name), item)
                for name, item in value.items()
                if str(name).isprintable()
            ]
        level = inner


def _is_weight(name: Any, value: Any) -> bool:
    return (
        isinstance(name, str)
        and name.isprintable()  # Names are shown.
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
        and not value.is_complex()
    )


def _unwrapped(state: State) -> State:
    """Without what DistributedDataParallel and torch.compile put into names."""
    names = [
        ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))
        for name in state
    ]
    if len(set(names)) < len(names):  # The wrapped net and the net itself: they stay apart.
        return state
    return dict(zip(names, state.values(), strict=True))
