"""Writing a distilled file: streamed, hashed on the way, under its name only when whole."""

import json
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
from torch import Tensor

from scdd.distilled.format import (
    IMAGES,
    LABELS,
    SOFT_LABELS,
    VIEWS,
    Header,
    label_fault,
)
from scdd.distilled.records import ViewRecords, pack, record_fault
from scdd.distilled.soft_labels import Arrays, Codec
from scdd.distilled.streams import Sink, Stream, finish, new_hdf5, set_text, write_attributes
from scdd.files import replacing

LABEL_CHUNK = 2**15
"""Soft labels are read whole views at a time, and some rows of one in any order."""

Block = tuple[ViewRecords, Arrays]
"""Records of v views and their soft labels as the codec has encoded them, [v, N, ...]."""


def write_distilled(
    path: str | Path,
    header: Header,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    blocks: Iterable[Block] | None = None,
    views: int = 0,
    codec: Codec | None = None,
) -> str:
    """Write a distilled file and return its digest; a file of that name is replaced at the end.

    Args:
        path: the file, whole or untouched whatever happens.
        header: what it says of itself; `digest` is ignored.
        images: uint8 [N, 3, S, S].
        labels: integers [N]; -1 is none.
        blocks: the views in order; drawn one at a time. None: images and labels alone.
        views: number of views V in all blocks together.
        codec: how soft labels are stored; None: not at all (`target_kind` none), which leaves
            views for class labels where there are blocks.

    Raises:
        ValueError: if the parts do not fit each other.
        RunError: if the disk is full.
    """
    if (codec is None) != (header.target_kind == "none") or (codec is not None and blocks is None):
        raise ValueError(f"target_kind '{header.target_kind}' does not fit the blocks or the codec")
    pixels, classes = _checked_images(images, header), _checked_labels(labels, header)
    with replacing(Path(path)) as temporary, new_hdf5(temporary) as (file, sink):
        write_attributes(file, header)
        streams = [
            Stream(file, IMAGES, pixels.shape, "|u1"),
            Stream(file, LABELS, (len(classes),), "<i4"),
        ]
        for start in range(0, len(pixels), streams[0].rows):
            streams[0].append(pixels[start : start + streams[0].rows])
            sink.check()
        streams[1].append(classes)
        groups: dict[str, dict[str, object]] = {}
        if blocks is not None:
            groups = _write_blocks(file, sink, header, blocks, views, codec, streams)
        return finish(file, sink, header, groups, streams)


def _write_blocks(
    file: h5py.File,
    sink: Sink,
    header: Header,
    blocks: Iterable[Block],
    views: int,
    codec: Codec | None,
    streams: list[Stream],
) -> dict[str, dict[str, object]]:
    """Write views and soft labels; add their streams and return the attributes of the groups."""
    count = header.count
    view_group = file.create_group(VIEWS)
    parameters: dict[str, Stream] = {}
    labels: dict[str, Stream] = {}
    if codec is not None:
        label_group = file.create_group(SOFT_LABELS)
        for name, (kind, tail) in codec.layout.items():
            labels[name] = Stream(label_group, name, (views, count, *tail), kind, LABEL_CHUNK)
    first: ViewRecords | None = None
    done = 0
    for records, encoded in blocks:
        _check_block(records, encoded, first or records, header, codec)
        if first is None:
            first = records
            for name, values in sorted(records.parameters.items()):
                example = pack(name, values[:1])
                shape = (views, *example.shape[1:])
                parameters[name] = Stream(view_group, name, shape, example.dtype.str)
        done += records.count()
        if done > views:
            raise ValueError(f"there are more than the {views} views announced")
        for name, values in records.parameters.items():
            parameters[name].append(pack(name, values))
        for name, values in encoded.items():
            labels[name].append(values.cpu().numpy())
        sink.check()
    if first is None or done < views:
        raise ValueError(f"there are {done} of the {views} views announced")
    groups: dict[str, dict[str, object]] = {
        VIEWS: {"ops": list(first.ops), "padding": first.padding}
    }
    set_text(view_group, "ops", json.dumps(list(first.ops)))
    view_group.attrs["padding"] = first.padding
    if codec is not None:
        groups[SOFT_LABELS] = {"codec": codec.name, **codec.attributes}
        set_text(label_group, "codec", codec.name)
        for name, value in codec.attributes.items():
            label_group.attrs[name] = value
    streams += [*parameters.values(), *labels.values()]
    return groups


def _check_block(
    records: ViewRecords,
    encoded: Arrays,
    first: ViewRecords,
    header: Header,
    codec: Codec | None,
) -> None:
    fault = record_fault(records, header.count, header.image_size)
    if fault is not None:
        raise ValueError(f"view records: {fault}")
    layouts = [
        (r.ops, r.padding, {name: values.shape[2:] for name, values in r.parameters.items()})
        for r in (records, first)
    ]
    if layouts[0] != layouts[1]:
        raise ValueError("blocks differ in operations, padding or parameters")
    layout = codec.layout if codec is not None else {}
    if set(encoded) != set(layout):
        raise ValueError(f"soft labels hold {sorted(encoded)}, not {sorted(layout)}")
    for name, (kind, tail) in layout.items():
        wanted = (records.count(), header.count, *tail)
        values = encoded[name]
        if tuple(values.shape) != wanted or values.numpy(force=True).dtype != np.dtype(kind):
            raise ValueError(
                f"{name} of the soft labels is {values.dtype} {list(values.shape)}, not "
                f"{np.dtype(kind)} {list(wanted)}"
            )


def _checked_images(images: Tensor | np.ndarray, header: Header) -> np.ndarray:
    pixels = _array(images)
    wanted = (header.count, 3, header.image_size, header.image_size)
    if pixels.dtype != np.uint8 or pixels.shape != wanted:
        raise ValueError(
            f"images are {pixels.dtype} {list(pixels.shape)}, not uint8 {list(wanted)}"
        )
    return pixels


def _checked_labels(labels: Tensor | np.ndarray, header: Header) -> np.ndarray:
    classes = _array(labels)
    if classes.dtype.kind not in "iu" or classes.shape != (header.count,):
        raise ValueError(
            f"labels are {classes.dtype} {list(classes.shape)}, not integers [{header.count}]"
        )
    fault = label_fault(classes, header)
    if fault is not None:
        raise ValueError(fault)
    return classes.astype("<i4")


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
