"""Select: real images in place of synthetic ones, for baselines and for a real start."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from scdd.augment import CropDraw, normalise
from scdd.augment.crops import ATTEMPTS
from scdd.config.recover import RecoverConfig
from scdd.datasets.sources import ImageSource, Request
from scdd.errors import DataError
from scdd.probing import features
from scdd.seeding import generator
from scdd.training import evaluating

BLOCK = 500
"""Images of a forward pass."""
CROP_SCALE = (0.08, 1.0)
"""Share of the image that a candidate crop of RDED takes."""


def random_real(source: ImageSource, ipc: int, seed: int) -> Tensor:
    """Choose `ipc` random images of each class; return their indices [C * ipc], rank-major.

    Row r * C + c is the r-th image of class c, so the first C * k rows are the choice for ipc k.

    Raises:
        DataError: if a class has fewer than `ipc` images.
    """
    chosen = []
    for label, name in enumerate(source.classes):
        members = (source.labels == label).nonzero().squeeze(1)
        if len(members) < ipc:
            raise DataError(
                f"class '{name}' has {len(members)} training images, but ipc is {ipc}; "
                "lower ipc or add images"
            )
        order = torch.randperm(len(members), generator=generator(seed, "select.random", label))
        chosen.append(members[order[:ipc]])
    return torch.stack(chosen, dim=1).flatten()


class Chosen(NamedTuple):
    """Real images for the rows of a distilled set."""

    images: Tensor
    """int64 [C * ipc], rank-major."""
    uniforms: Tensor | None = None
    """[4, C * ipc, ATTEMPTS]: what their crops are drawn from; None: whole images."""


def choose_start(
    cfg: RecoverConfig,
    source: ImageSource,
    teacher: nn.Module,
    ipc: int,
    seed: int,
    device: torch.device,
) -> Chosen:
    """Choose the images that recovery starts from, as `cfg.start` (not noise) says.

    Args:
        cfg: its `start`, `candidates` and `candidate_crops`.
        source: the training images, with the pixel statistics that the teacher knows.
        teacher: classifier of normalised images.
        ipc: images per class.
        seed: of the run.
        device: where the teacher computes.

    Raises:
        DataError: if a class has fewer than `ipc` images.
    """
    rows = random_real(source, ipc, seed)  # Refuses, too, what the others cannot do.
    if cfg.start == "real":
        return Chosen(rows)
    find = easiest_crops if cfg.start == "rded" else around_the_median
    return find(cfg, source, teacher, ipc, seed, device)


def read_chosen(source: ImageSource, chosen: Chosen, rows: Tensor) -> Tensor:
    """Return the images of some rows: uint8 [B, 3, S, S] on the source's device."""
    if chosen.uniforms is None:
        return source.read(chosen.images[rows])
    size = source.read(chosen.images[:1]).shape[-1]
    whole = _crops(size, chosen.uniforms[:, rows])
    ((crops,),) = source.crops([Request(chosen.images[rows], (whole,))])
    return (crops * 255).round().clamp(0, 255).to(torch.uint8)


def easiest_crops(
    cfg: RecoverConfig,
    source: ImageSource,
    teacher: nn.Module,
    ipc: int,
    seed: int,
    device: torch.device,
) -> Chosen:
    """The crops of the lowest cross-entropy, best first (RDED, arXiv:2312.03526, section 4.2).

    Of each class `candidates` random images are looked at, and of each of them the best of
    `candidate_crops` random crops counts.
    """
    size = source.read(torch.zeros(1, dtype=torch.int64)).shape[-1]
    images, uniforms = [], []
    for label in range(len(source.classes)):
        draw = generator(seed, "select.rded", label)
        members = (source.labels == label).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=draw)][: max(cfg.candidates, ipc)]
        drawn = torch.rand(cfg.candidate_crops, 4, len(members), ATTEMPTS, generator=draw)
        losses = torch.stack(
            [_losses(source, teacher, members, label, crops, size, device) for crops in drawn]
        )
        best = losses.min(dim=0)
        order = best.values.argsort(stable=True)[:ipc]
        images.append(members[order])
        uniforms.append(drawn[best.indices[order], :, order])
    # From [class, rank] to rank-major.
    return Chosen(
        torch.stack(images, dim=1).flatten(),
        torch.stack(uniforms, dim=1).flatten(0, 1).transpose(0, 1).contiguous(),
    )


def around_the_median(
    cfg: RecoverConfig,
    source: ImageSource,
    teacher: nn.Module,
    ipc: int,
    seed: int,
    device: torch.device,
) -> Chosen:
    """Images of medium difficulty (DELT, arXiv:2411.19946): from the median confidence outwards.

    All images of a class are put in the order of the teacher's probability for their class; the
    median comes first, then by turns one above and one below it.
    """
    chosen = []
    for label in range(len(source.classes)):
        members = (source.labels == label).nonzero().squeeze(1)
        logits = features(teacher, source, device, rows=members)
        order = logits.softmax(dim=1)[:, label].cpu().argsort(stable=True)
        middle = (len(order) - 1) // 2
        steps = torch.arange(1, len(order) + 1)
        outwards = middle + (steps // 2) * torch.where(steps % 2 == 0, 1, -1)
        chosen.append(members[order[outwards][:ipc]])
    return Chosen(torch.stack(chosen, dim=1).flatten())


@torch.no_grad()
def _losses(
    source: ImageSource,
    teacher: nn.Module,
    members: Tensor,
    label: int,
    uniforms: Tensor,
    size: int,
    device: torch.device,
) -> Tensor:
    """Cross-entropy [M] of one crop of each image."""
    parts = torch.arange(len(members)).split(BLOCK)
    requests = (Request(members[part], (_crops(size, uniforms[:, part]),)) for part in parts)
    found = []
    with evaluating(teacher):
        for (crops,) in source.crops(requests):
            logits = teacher(normalise(crops.to(device), source.mean, source.std)).float()
            found.append(-logits.log_softmax(dim=1)[:, label].cpu())
    return torch.cat(found)


def _crops(size: int, uniforms: Tensor) -> CropDraw:
    return CropDraw(size, CROP_SCALE, uniforms, torch.zeros(uniforms.shape[1], dtype=torch.bool))
