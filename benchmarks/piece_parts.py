"""Where files are cut into parts, and checkpoints whose moments take half the bytes."""

import io
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from scdd.checkpoint import DAMAGED, load_checked

LEAST_TENSOR = 65_536
"""Bytes; smaller ones stay together."""


def cuts_of(data: bytes, suffix: str, most: int) -> list[tuple[int, int]]:
    """First and last byte of every part of a file, none of them longer than `most`.

    safetensors are cut between large tensors, so that files with the same weights have the same
    parts wherever these stand in them.
    """
    edges = _tensor_edges(data) if suffix == ".safetensors" else []
    edges = [0, *edges, len(data)]
    cuts = []
    for first, last in pairwise(edges):
        cuts += [(start, min(start + most, last)) for start in range(first, last, most)]
    return cuts or [(0, 0)]


def as_bf16(data: bytes) -> bytes:
    """The content of a checkpoint, with the moments of its optimiser as bf16."""
    return _changed(data, torch.float32, torch.bfloat16)


def from_bf16(data: bytes) -> bytes:
    """The content of a checkpoint as it is gone on with."""
    return _changed(data, torch.bfloat16, torch.float32)


def _tensor_edges(data: bytes) -> list[int]:
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        spans = sorted(
            tuple(about["data_offsets"]) for name, about in header.items() if name != "__metadata__"
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return []  # Not laid out as such files are, so it is cut like any other.
    edges = {8 + length}
    for first, last in spans:
        if last - first >= LEAST_TENSOR:
            edges |= {8 + length + first, 8 + length + last}
    return sorted(edge for edge in edges if 0 < edge < len(data))


def _changed(data: bytes, before: torch.dtype, after: torch.dtype) -> bytes:
    try:
        state = load_checked(io.BytesIO(data))
    except DAMAGED:
        return data  # As it is, for `scdd distill` to refuse.

    def moment(tensor: Tensor) -> Tensor:
        # Counters of steps are numbers without axes, and have to stay exact.
        return tensor.to(after) if tensor.dtype == before and tensor.ndim else tensor

    optimizer = state.get("optimizer") if isinstance(state, dict) else None
    if not isinstance(optimizer, dict) or "state" not in optimizer:
        return data
    changed = {**state, "optimizer": {**optimizer, "state": _map(optimizer["state"], moment)}}
    written = io.BytesIO()
    torch.save(changed, written)
    return written.getvalue()


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    return value
