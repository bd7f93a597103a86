"""Soft labels in the making: the mean logits of frozen networks on stored views.

`label_views` is the only place that makes them: what relabel stores, what the codec `teacher`
serves and what `inspect --teacher` compares with cannot differ.
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scdd.augment import normalise
from scdd.bn_statistics import GroupedBatchNorm, replace_batchnorm
from scdd.checkpoint import fill, load_weights
from scdd.config.section import Triple
from scdd.distilled.format import Header
from scdd.distilled.hdf5 import refuse
from scdd.distilled.records import ViewRecords, group_members
from scdd.distilled.views import render_views
from scdd.errors import CheckpointError
from scdd.models import recreate

IMAGES_A_PASS = 500


class Labellers(nn.Module):
    """Frozen copies of networks; a label is the mean of their logits.

    Dropout is off. BatchNorm uses its own statistics, or with `grouped` those of each group of
    images that are labelled together.
    """

    def __init__(self, teachers: Sequence[nn.Module], grouped: bool) -> None:
        super().__init__()
        self.nets = nn.ModuleList(copy.deepcopy(teacher) for teacher in teachers)
        self._layers = replace_batchnorm(self.nets, GroupedBatchNorm) if grouped else []
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, groups: int = 1) -> Tensor:
        """Return labels float32 [G * B, C] of normalised images, one group after the other."""
        for layer in self._layers:
            layer.groups = groups
        return torch.stack([net(x).float() for net in self.nets]).mean(dim=0)


class Pass(NamedTuple):
    """Images that go through the networks at once."""

    rows: Tensor
    """int64 [G * B], numbers of the images."""
    groups: int
    """G groups of B images that are labelled together, one after the other; 1 without groups."""


def passes(records: ViewRecords, view: int, count: int, batch: int = IMAGES_A_PASS) -> list[Pass]:
    """Cut `count` images into passes of at most `batch`, or one group if that is more.

    Groups in a pass are of one size, so those of another go in passes of their own.
    """
    if "group" not in records.parameters:
        return [Pass(part, 1) for part in torch.arange(count).split(batch)]
    members = group_members(records.parameters["group"][view].cpu())
    found = []
    for size in sorted({len(group) for group in members}, reverse=True):
        alike = [group for group in members if len(group) == size]
        at_once = max(1, batch // size)
        for first in range(0, len(alike), at_once):
            part = alike[first : first + at_once]
            found.append(Pass(torch.cat(part), len(part)))
    return found


def label_views(
    labellers: Labellers,
    images: Tensor,
    records: ViewRecords,
    view: int,
    mean: Triple,
    std: Triple,
    device: torch.device,
    parts: Sequence[Pass],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Label one view of some images; yield their numbers int64 [B] and labels float32 [B, C].

    Args:
        labellers: the networks, on `device`.
        images: uint8 [N, 3, S, S], anywhere: only those of a pass and their partners are read.
        records: the views of all N.
        view: which one.
        mean, std: of the pixels, as the networks know them.
        device: where views are rendered and labelled.
        parts: of `passes`.
    """
    for rows, groups in parts:
        near, own, place = _gathered(images, records, view, rows, device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            shown = normalise(render_views(near, own, 0, place), mean, std)
            yield rows, labellers(shown, groups)


def load_labellers(path: Path, weights: Sequence[Path], header: Header, grouped: bool) -> Labellers:
    """Load the networks that label the file at `path`, which may be others than it records.

    Raises:
        FormatError: if one knows other classes or another image size than the file.
        CheckpointError: if one cannot be read.
    """
    nets = []
    for origin in weights:
        tensors, about = load_weights(origin)
        classes, size = about.get("classes"), about.get("image_size")
        if classes is None or size is None:
            raise CheckpointError(f"{origin}: holds no classifier; give the teacher.safetensors")
        if tuple(classes) != header.class_names or size != header.image_size:
            refuse(
                path,
                f"{origin} is for {len(classes)} classes at {size} px that are not those of the "
                f"file, {len(header.class_names)} at {header.image_size} px",
                "give the teacher of this file",
            )
        nets.append(fill(recreate(about), tensors, origin))
    return Labellers(nets, grouped)


def _gathered(
    images: Tensor, records: ViewRecords, view: int, rows: Tensor, device: torch.device
) -> tuple[Tensor, ViewRecords, Tensor]:
    """Some images and their partners on `device`, their records, and the places of the former."""
    one = {name: values[view].cpu() for name, values in records.parameters.items()}
    needed = rows
    if "partner" in one:
        needed = torch.cat([rows, one["partner"][rows].long()])
    needed = needed.unique()
    own = {name: values[needed] for name, values in one.items()}
    if "partner" in own:
        # Of images that are only partners the place is meaningless, and nobody asks for it.
        own["partner"] = torch.searchsorted(needed, own["partner"].long()).int()
    near = images[needed.to(images.device)].to(device)
    parameters = {name: values[None] for name, values in own.items()}
    found = ViewRecords(records.ops, parameters, records.padding).to(device)
    return near, found, torch.searchsorted(needed, rows).to(device)
