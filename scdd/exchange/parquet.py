"""One Parquet file in the layout of Hugging Face `datasets`: PNG images and labels or targets."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdd.errors import UserError

GROUP_BYTES = 16 * 2**20
"""Pixels of the images of a row group, which is what a writer or reader holds at a time."""


def require_pyarrow() -> None:
    """Say what is missing before there is any work.

    Raises:
        UserError: if pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(
            "--format parquet: pyarrow is not installed; pip install 'scdd[export]', or choose "
            "imagefolder"
        ) from error


def write_parquet(
    path: Path,
    images: Iterable[tuple[str, bytes]],
    labels: Sequence[int],
    classes: Sequence[str],
    rows: int,
) -> None:
    """Write columns image (struct of the file's bytes and its name) and label, and their meaning.

    Args:
        path: the file.
        images: name and PNG of every image, in order; `rows` of them are held at a time.
        labels: class of every image; -1 is none.
        classes: their names, all different.
        rows: images in a row group.
    """
    import pyarrow as pa

    meaning = {"names": list(classes), "_type": "ClassLabel"}
    _write_rows(path, images, "label", pa.array(labels, pa.int64()), meaning, rows)


def write_target_parquet(
    path: Path, images: Iterable[tuple[str, bytes]], targets: NDArray[np.float32], rows: int
) -> None:
    """Write columns image, as `write_parquet` does, and target, of targets float32 [N, d]."""
    import pyarrow as pa

    length = targets.shape[1]
    column = pa.FixedSizeListArray.from_arrays(pa.array(targets.reshape(-1)), length)
    value = {"dtype": "float32", "_type": "Value"}
    meaning = {"feature": value, "length": length, "_type": "Sequence"}
    _write_rows(path, images, "target", column, meaning, rows)


def _write_rows(
    path: Path,
    images: Iterable[tuple[str, bytes]],
    name: str,
    column: Any,
    meaning: dict[str, Any],
    rows: int,
) -> None:
    """Write images and the Arrow array `column` of that name and meaning for Hugging Face."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"image": {"_type": "Image"}, name: meaning}
    schema = pa.schema(
        {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), name: column.type},
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    source = iter(images)
    # Opened here: what fails to be written is then an OSError with its number. PNG is compressed.
    with path.open("wb") as file, pq.ParquetWriter(file, schema, compression="none") as writer:
        for first in range(0, len(column), rows):
            part = column.slice(first, rows)
            named = [next(source) for _ in part]
            pngs = [{"bytes": data, "path": file_name} for file_name, data in named]
            writer.write_table(pa.table({"image": pngs, name: part}, schema=schema))


def all_different(names: Sequence[str]) -> list[str]:
    """Number the names that have been before: readers take no class name twice."""
    taken, seen = set(names), set[str]()
    found = []
    for name in names:
        candidate, number = name, 1
        while name in seen and candidate in taken:
            number += 1
            candidate = f"{name} ({number})"
        seen.add(name)
        taken.add(candidate)
        found.append(candidate)
    return found
