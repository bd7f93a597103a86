"""`scdd export`: the images of a distilled file as PNG files or as Parquet, with a dataset card."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from scdd.distilled import DistilledDataset, DistilledFile, read_header
from scdd.distilled.computed_labels import TEACHER
from scdd.errors import ConfigError
from scdd.exchange.class_folders import (
    CLASSES,
    NO_CLASS,
    ClassFolder,
    folder_names,
    write_classes,
)
from scdd.exchange.dataset_card import COPY, dataset_card, scores_of
from scdd.exchange.parquet import GROUP_BYTES, all_different, require_pyarrow, write_parquet
from scdd.exchange.png_files import png_files
from scdd.exchange.representations import export_pairs
from scdd.files import new_folder, sha256_of


def export_file(file: Path, form: str, out: Path, with_file: bool) -> str:
    """Write the images of a distilled file to a new folder; return what to say about it.

    Args:
        file: the distilled file.
        form: `imagefolder` (train/<class>/<row>.png) or `parquet` (data/train.parquet); with
            representations also `dense` (distilled.h5, decoded).
        out: the folder: new or empty, and there when it is whole.
        with_file: copy `file` beside, as distilled.h5, for soft labels and views, and the weights
            beside it that compute its labels where it has none.

    Raises:
        UserError: if the file, the format or the folder cannot be used.
        RunError: if the disk is full.
    """
    if read_header(file).represented:
        return export_pairs(file, form, out, with_file)
    if form not in _WRITERS:
        raise ConfigError(f"--format {form}: choose {' or '.join(_WRITERS)}")
    if form == "parquet":
        require_pyarrow()
    data = DistilledDataset.open(file)
    with DistilledFile(file, contents=False) as opened:
        codec = None if opened.codec is None else opened.codec.name
    beside = _beside(file, data, codec) if with_file else {}
    card = dataset_card(data, codec, form, list(beside), scores_of(file, data.header))
    with new_folder(out) as folder:
        _WRITERS[form](folder, data)
        for name, source in beside.items():
            shutil.copyfile(source, folder / name)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return (
        f"{out}: {', '.join([f'{len(data)} images as {form}', 'README.md', *beside])}\n"
        "Before you publish it: choose a licence in README.md that the original images allow."
    )


def _beside(file: Path, data: DistilledDataset, codec: str | None) -> dict[str, Path]:
    """The files to copy, by their new names."""
    weights, recorded = file.with_name(TEACHER), (data.header.teacher or {}).get("weights")
    if codec == "teacher" and weights.is_file() and sha256_of(weights) == recorded:
        return {COPY: file, TEACHER: weights}
    return {COPY: file}


def _write_image_folder(folder: Path, data: DistilledDataset) -> None:
    folders = folder_names([*data.classes, NO_CLASS])
    labels = data.labels.tolist()
    images = Counter(labels)
    for label in images:  # -1 picks the last folder, that of no class.
        (folder / "train" / folders[label]).mkdir(parents=True)
    for label, (name, png) in zip(labels, png_files(data.images), strict=True):
        (folder / "train" / folders[label] / name).write_bytes(png)
    written = [
        ClassFolder(folders[label], name, label, images[label])
        for label, name in enumerate(data.classes)
    ]
    if -1 in images:
        written.append(ClassFolder(folders[-1], None, -1, images[-1]))
    write_classes(folder / CLASSES, written)


def _write_parquet(folder: Path, data: DistilledDataset) -> None:
    (folder / "data").mkdir()
    write_parquet(
        folder / "data" / "train.parquet",
        png_files(data.images),
        data.labels.tolist(),
        all_different(data.classes),
        rows=max(1, GROUP_BYTES // data.images[0].numel()),
    )


_WRITERS: dict[str, Callable[[Path, DistilledDataset], None]] = {
    "imagefolder": _write_image_folder,
    "parquet": _write_parquet,
}
