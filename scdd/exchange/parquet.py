"""One Parquet file in the layout of Hugging Face `datasets`: PNG images and class labels."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

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
    import pyarrow.parquet as pq

    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
    }
    schema = pa.schema(
        {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()},
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    source = iter(images)
    # Opened here: what fails to be written is then an OSError with its number. PNG is compressed.
    with path.open("wb") as file, pq.ParquetWriter(file, schema, compression="none") as writer:
        for first in range(0, len(labels), rows):
            part = labels[first : first + rows]
            named = [next(source) for _ in part]
            column = [{"bytes": data, "path": name} for name, data in named]
            writer.write_table(pa.table({"image": column, "label": part}, schema=schema))


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
