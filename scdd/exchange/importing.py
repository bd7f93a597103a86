"""`scdd import`: images in class folders, of any method, as a distilled file with soft labels."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scdd.config.load import relabel_config
from scdd.config.relabel import RelabelConfig
from scdd.config.section import Triple
from scdd.datasets.file_index import FileIndex
from scdd.datasets.image_folder import decode_files
from scdd.datasets.load import MEASURED
from scdd.datasets.pixel_statistics import measure_mean_std
from scdd.datasets.splits import evenly_spaced
from scdd.distilled import Header, codec_of, label_sizes, write_distilled
from scdd.errors import ConfigError, DataError, UserError
from scdd.exchange.class_order import check_classes
from scdd.exchange.image_files import Known, class_files, find_images, image_size
from scdd.exchange.labeller import Labeller, load_labeller
from scdd.progress import say
from scdd.run import versions
from scdd.tables import size as size_of

SEED = 0
"""Of the views, as in a run that sets none."""


def import_folder(
    folder: Path,
    out: Path,
    data: Path | None,
    size: int | None,
    method: str | None,
    teacher: Path | None,
    overrides: Sequence[str],
    device: torch.device,
) -> str:
    """Write images in class folders as a distilled file; return what to say about it.

    Args:
        folder: holds a folder per class, or train/ with these; an export of scdd comes back with
            its labels, class names and order.
        out: the file; nothing may be there.
        data: image folder with train/ or val/: names and order of the classes, and from train/
            the pixel statistics.
        size: side in pixels that images are brought to; None: all have the same already.
        method: name of the method that made the images; None: imported.
        teacher: teacher.safetensors of a run, to label stored views; None: no soft labels.
        overrides: `relabel.key=value`.
        device: where the teacher labels.

    Raises:
        UserError: if something cannot be used, or does not go with the rest.
        RunError: if the disk is full, or the teacher's logits are no numbers.
    """
    if overrides and teacher is None:
        raise ConfigError(f"--set {overrides[0]}: has an effect only with --teacher")
    settings = relabel_config(overrides)
    if settings.codec == "teacher":
        raise ConfigError("relabel.codec: is teacher, but what is imported keeps its labels itself")
    _refuse_unwritable(out)
    name, method = _text(folder.resolve().name, "FOLDER"), _text(method or "imported", "--method")
    labeller = None if teacher is None else load_labeller(teacher)
    split = None if data is None else _split_of(data)
    real = None if data is None or split is None else class_files(data, split)
    images = find_images(folder, _known(real, data, labeller))
    side, resized = image_size(images, size, folder)
    if labeller is not None:
        _check_fit(settings, labeller, folder, side, len(images.rows))
    if resized:
        say(f"{resized} of {len(images.rows)} images resized to {side} px")
    pixels = decode_files(images.files, images.rows, side, "decode")
    mean, std, origin = _mean_std(pixels, real if split == "train" else None, labeller)
    say(f"mean and standard deviation: {origin}")
    count, classes = len(pixels), len(images.classes)
    ranked = count % classes == 0 and torch.equal(images.labels, torch.arange(count) % classes)
    config: dict[str, Any] = {
        "imported": {"folder": name, "resized_images": resized, "mean_and_std": origin}
    }
    if labeller is not None:
        config["relabel"] = settings.model_dump(mode="json")
    codec = None if labeller is None else codec_of(settings, classes)
    header = Header(
        target_kind="none" if codec is None else "logits",
        target_dim=0 if codec is None else classes,
        method=method,
        recipe="custom",
        dataset=name,
        class_names=images.classes,
        mean=mean,
        std=std,
        image_size=side,
        ipc=count // classes if ranked else None,
        budget_n=None if ranked else count,
        seed=SEED,
        config=config,
        versions=versions(),
        teacher=None if labeller is None else labeller.record(settings),
    )
    if labeller is None:
        write_distilled(out, header, pixels, images.labels)
    else:
        sizes = label_sizes(settings, count, side, classes)
        parts = size_of(sizes.labels), size_of(sizes.views)
        say(f"soft labels: {parts[0]} ({settings.codec}), views: {parts[1]}")
        blocks = labeller.blocks(settings, codec, pixels, SEED, device)
        write_distilled(out, header, pixels, images.labels, blocks, settings.views, codec)
    per_class = f"{header.ipc} per class" if ranked else "not the same number of each"
    views = "no views" if labeller is None else f"{settings.views} views, labels {settings.codec}"
    return f"{out}: {count} images of {side} px, {classes} classes, {per_class}, {views}"


def _refuse_unwritable(out: Path) -> None:
    """Refuse a target before the work, not after."""
    if out.exists():
        raise UserError(f"{out}: is there already; choose another --out")
    place = out.absolute().parent
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UserError(f"{out}: {place} is no folder that can be written; choose another --out")


def _text(text: str, what: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{what} {text!r}: is not valid UTF-8; choose another name") from None
    return text


def _split_of(data: Path) -> str:
    """The split that says what there is to know of real images: train/, or val/ alone."""
    return "val" if (data / "val").is_dir() and not (data / "train").is_dir() else "train"


def _known(real: FileIndex | None, data: Path | None, labeller: Labeller | None) -> Known | None:
    """The classes of the real images and of the teacher, which must be the same."""
    taught = None if labeller is None else Known(labeller.classes, str(labeller.path))
    if real is None:
        return taught
    if taught is not None:
        check_classes(real.classes, taught.classes, str(data), taught.origin)
    return Known(real.classes, str(data))


def _check_fit(cfg: RelabelConfig, labeller: Labeller, folder: Path, side: int, count: int) -> None:
    wanted = labeller.image_size
    if wanted != side:
        raise DataError(
            f"{folder}: images are {side} px, but {labeller.path} sees {wanted} px; give --size "
            f"{wanted} to resize them"
        )
    if cfg.crop == "padded" and cfg.padding > side:
        raise ConfigError(
            f"relabel.padding is {cfg.padding}, more than an image of {side} px has; lower it"
        )
    if cfg.teacher_bn == "batch" and count < 2:
        raise ConfigError(f"{folder}: has one image, which relabel.teacher_bn=batch cannot label")


def _mean_std(
    pixels: Tensor, real: FileIndex | None, labeller: Labeller | None
) -> tuple[Triple, Triple, str]:
    """Return mean, standard deviation and where they come from, in words."""
    if labeller is not None:
        return labeller.mean, labeller.std, "those of the teacher"
    if real is None:
        return *measure_mean_std(pixels.split(4096)), "measured on the imported images"
    rows = evenly_spaced(torch.arange(len(real)), MEASURED)
    parts = (decode_files(real, part, pixels.shape[-1], "measure") for part in rows.split(256))
    return *measure_mean_std(parts), f"measured on {len(rows)} of {len(real)} training images"
