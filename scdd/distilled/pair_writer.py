"""Writing a set of images and representations, dense or factored."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scdd.distilled.format import LABELS, VIEWS, Header
from scdd.distilled.pairs import (
    DenseSet,
    Pairs,
    budget_fault,
    sizes_of,
    stored_parts,
    turn_records,
)
from scdd.distilled.records import pack
from scdd.distilled.streams import Stream, finish, new_hdf5, set_text, write_attributes
from scdd.files import replacing

_DTYPES = {torch.uint8: "|u1", torch.float16: "<f2", torch.float32: "<f4"}


def write_pairs(path: str | Path, header: Header, parts: Pairs) -> str:
    """Write a set and return its digest; a file of that name is replaced at the end.

    Args:
        path: the file, whole or untouched whatever happens.
        header: what it says of itself; `digest` is ignored.
        parts: float16 or float32, as they are to be stored; images of a dense set also uint8.

    Raises:
        ValueError: if header and parts do not fit each other, a value is not finite, or the set is
            over its budget.
        RunError: if the disk is full.
    """
    tensors = {name: values.detach().cpu() for name, values in stored_parts(parts).items()}
    fault = _fault(header, parts, tensors)
    if fault is not None:
        raise ValueError(fault)
    records = turn_records(parts.turns, len(parts))
    arrays = {
        LABELS: np.full(len(parts), -1, "<i4"),
        f"{VIEWS}/rot90": pack("rot90", records.parameters["rot90"]),
        **{name: values.numpy() for name, values in tensors.items()},
    }
    with replacing(Path(path)) as temporary, new_hdf5(temporary) as (file, sink):
        write_attributes(file, header)
        streams = []
        for name, values in arrays.items():
            stream = Stream(file, name, values.shape, values.dtype.str)
            for start in range(0, len(values), stream.rows):
                stream.append(values[start : start + stream.rows])
                sink.check()
            streams.append(stream)
        groups: dict[str, dict[str, object]] = {
            VIEWS: {"ops": list(records.ops), "padding": records.padding}
        }
        set_text(file[VIEWS], "ops", json.dumps(list(records.ops)))
        file[VIEWS].attrs["padding"] = records.padding
        return finish(file, sink, header, groups, streams)


def _fault(header: Header, parts: Pairs, tensors: dict[str, Tensor]) -> str | None:
    dense = isinstance(parts, DenseSet)
    unit = tensors["images"].dtype == torch.uint8 if dense else False
    wanted = {
        "target_kind": "representation",
        "kind": "dense" if dense else "factored",
        "pixel_space": "unit" if unit else "normalized",
        "image_count": len(parts),
        "image_size": parts.image_size,
        "target_dim": parts.target_dim,
    }
    for name, value in wanted.items():
        if getattr(header, name) != value:
            return f"{name} of the header is {getattr(header, name)}, but that of the set {value}"
    for name, values in tensors.items():
        known = list(_DTYPES)[0 if name == "images" else 1 :]
        if values.dtype not in known:
            return f"{name} is {values.dtype}, not {' or '.join(map(str, known))}"
        if values.numel() == 0:
            return f"{name} is empty"
        if values.dtype != torch.uint8 and not torch.isfinite(values).all():
            return f"{name} is not finite"
    shapes = {name: values.shape for name, values in tensors.items()}
    assert header.budget_n is not None
    return budget_fault(sizes_of(shapes, header.image_size), header.budget_n)
