"""`scdd export` of images with representations: every view of every image beside its target."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scdd.distilled import FactoredSet, RepresentationDataset, materialised, write_pairs
from scdd.distilled.bill import budget_floats, storage_floats
from scdd.distilled.pairs import sizes_of, stored_parts
from scdd.errors import ConfigError
from scdd.exchange.dataset_card import COPY, opening, origin_facts
from scdd.exchange.parquet import GROUP_BYTES, require_pyarrow, write_target_parquet
from scdd.exchange.png_files import png_files
from scdd.files import new_folder
from scdd.tables import counted

TARGETS = "targets.npy"


def export_pairs(file: Path, form: str, out: Path, with_file: bool) -> str:
    """Write all pairs of a file to a new folder; return what to say about it.

    Args:
        file: a distilled file of representations.
        form: `imagefolder` (train/images/<pair>.png and targets.npy), `parquet`
            (data/train.parquet) or `dense` (distilled.h5, of a factored file).
        out: the folder: new or empty, and there when it is whole.
        with_file: copy `file` beside, as distilled.h5.

    Raises:
        UserError: if the file, the format or the folder cannot be used.
        RunError: if the disk is full.
    """
    if form not in _WRITERS:
        raise ConfigError(f"--format {form}: choose {', '.join(_WRITERS)}")
    if form == "parquet":
        require_pyarrow()
    data = RepresentationDataset.open(file)
    if form == "dense" and data.header.kind == "dense":
        raise ConfigError(f"--format dense: {file} is dense already; choose imagefolder or parquet")
    if form == "dense" and with_file:
        raise ConfigError(f"--with-file: --format dense writes {COPY} itself; leave one out")
    with new_folder(out) as folder:
        _WRITERS[form](folder, data)
        if with_file:
            shutil.copyfile(file, folder / COPY)
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
        card = _card(data, form, names)
        (folder / "README.md").write_text(card, encoding="utf-8")
    written = ", ".join([f"{len(data)} images as {form}", "README.md", *names])
    return (
        f"{out}: {written}\n"
        "Before you publish it: choose a licence in README.md that the original images allow."
    )


def _write_image_folder(folder: Path, data: RepresentationDataset) -> None:
    images = folder / "train" / "images"
    images.mkdir(parents=True)
    for name, png in png_files(_pixels(data)):
        (images / name).write_bytes(png)
    with (folder / TARGETS).open("wb") as file:
        np.save(file, _targets(data))


def _write_parquet(folder: Path, data: RepresentationDataset) -> None:
    (folder / "data").mkdir()
    pixels = _pixels(data)
    rows = max(1, GROUP_BYTES // pixels[0].numel())
    path = folder / "data" / "train.parquet"
    write_target_parquet(path, png_files(pixels), _targets(data), rows)


def _write_dense(folder: Path, data: RepresentationDataset) -> None:
    """What a factored file decodes to; its budget is the one that this many numbers take."""
    assert isinstance(data.parts, FactoredSet)
    parts = materialised(data.parts)
    shapes = {name: values.shape for name, values in stored_parts(parts).items()}
    taken = storage_floats(sizes_of(shapes, data.image_size))
    budget_n = -(-taken // budget_floats(1, data.image_size, data.target_dim))
    header = dataclasses.replace(data.header, kind="dense", budget_n=budget_n, digest="")
    write_pairs(folder / COPY, header, parts)


_WRITERS: dict[str, Callable[[Path, RepresentationDataset], None]] = {
    "imagefolder": _write_image_folder,
    "parquet": _write_parquet,
    "dense": _write_dense,
}


def _pixels(data: RepresentationDataset) -> Tensor:
    """All views of all images, uint8 [V * m, 3, S, S]."""
    return torch.cat([data.pixels(view) for view in range(data.num_views)])


def _targets(data: RepresentationDataset) -> np.ndarray:
    """Targets of all pairs, float32 [V * m, d]."""
    return torch.cat([data.targets(view) for view in range(data.num_views)]).numpy()


def _card(data: RepresentationDataset, form: str, files: list[str]) -> str:
    header, side, count = data.header, data.image_size, len(data.parts)
    turns = ", ".join(str(90 * turn) for turn in data.parts.turns)
    pixels = {
        "dense": "normalised float32, as the factored file decodes them",
    }.get(form, "RGB, 8 bits; what was below black or above white is cut")
    place = {
        "imagefolder": f"Row k of `{TARGETS}` is the target of image k",
        "parquet": "The column `target` holds them",
        "dense": f"`{COPY}` holds them",
    }[form]
    facts = [
        f"- Images: {len(data)} of {side} x {side} px, {pixels}",
        f"- Views: the first {count} are the images themselves; each further {count} are the same, "
        f"turned counter-clockwise ({counted(data.num_views, 'view')}: {turns} degrees)",
        f"- Targets: vectors of {data.target_dim} numbers, float32",
        *origin_facts(header),
    ]
    use = (
        f"Each image has the representation that a self-supervised network gives its view, and no "
        f"class. {place}. Pre-train a network by regression: the mean squared error between what "
        "it says of the normalised image and the target; then train a linear probe on a task."
    )
    load = (
        "```python\nfrom scdd.distilled import RepresentationDataset\n\n"
        f'data = RepresentationDataset.open("FOLDER/{COPY}")\n```'
    )
    paragraphs = [
        *opening(header, form, "image-feature-extraction", len(data)),
        "\n".join(facts),
        "## Targets",
        use,
        *(["## Loading", load] if COPY in files else []),
    ]
    return "\n\n".join(paragraphs) + "\n"
