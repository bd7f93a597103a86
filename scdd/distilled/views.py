"""Views of the distilled images: sampled into records here, and replayed from them here."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scdd.augment import (
    chance,
    randaugment,
    random_resized_boxes,
    random_steps,
    resized_crop,
)
from scdd.config.relabel import RelabelConfig
from scdd.distilled.records import PARAMETERS, ViewRecords, round_lambda
from scdd.seeding import generator

__all__ = ["ViewRecords", "hard_label_weights", "render_views", "sample_views"]


def sample_views(
    cfg: RelabelConfig, count: int, image_size: int, seed: int, first: int, last: int
) -> ViewRecords:
    """Draw views first .. last - 1 of `count` square images of `image_size` pixels.

    View v draws from its own generator alone, so any range of views can be made by itself.

    Raises:
        ValueError: if the range is empty, the image too large for int16 pixels, or a group is
            asked for and there is one image.
    """
    if not 0 <= first < last:
        raise ValueError(f"views {first} .. {last} are an empty range")
    padding = cfg.padding if cfg.crop == "padded" else 0
    if image_size + padding > torch.iinfo(torch.int16).max:
        raise ValueError(f"pixel positions of {image_size} + {padding} do not fit in int16")
    ops = tuple(
        op
        for op, wanted in {
            "crop": cfg.crop != "none",
            # A record without any operation would not know its length: it gets flips that are off.
            "flip": cfg.flip or (cfg.crop == "none" and cfg.mix == "none"),
            "randaugment": cfg.randaugment is not None,
            cfg.mix: cfg.mix != "none",
        }.items()
        if wanted
    )
    views = [
        _sample_view(cfg, ops, count, image_size, generator(seed, "views", view))
        for view in range(first, last)
    ]
    parameters = {
        name: torch.stack([view[name] for view in views]).to(PARAMETERS[name][0])
        for name in views[0]
    }
    return ViewRecords(ops, parameters, padding)


def render_views(images: Tensor, records: ViewRecords, view: int, index: Tensor) -> Tensor:
    """Replay one view of some images: crop, flip, turn, RandAugment, then mix with the partner's.

    RandAugment works on whole values: its images are rounded to uint8 first.

    Args:
        images: uint8 [N, 3, H, W], all of them, since a partner may be any.
        records: on any device; where `images` are is fastest.
        view: which view.
        index: int64 [B], which images.

    Returns:
        float32 [B, 3, H, W] in [0, 1] on the device of `images`; outside the image it is black.
    """
    with torch.autocast(images.device.type, enabled=False):
        own = _unmixed(images, records, view, index)
        if records.mix is None:
            return own
        partner = _pick(records, "partner", view, index)
        other = _unmixed(images, records, view, partner.long())
        if records.mix == "mixup":
            weight = _pick(records, "lambda", view, index).to(images.device).view(-1, 1, 1, 1)
            return weight * own + (1 - weight) * other
        box = _pick(records, "box", view, index).to(images.device).long()
        rows = _span(box[:, 0], box[:, 2], own.shape[2])
        columns = _span(box[:, 1], box[:, 3], own.shape[3])
        return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], other, own)


def hard_label_weights(
    records: ViewRecords, view: int, index: Tensor, image_size: int
) -> tuple[Tensor, Tensor]:
    """Return the partner [B] of each image and the weight float32 [B] of its own class label.

    Without mixing the partner is the image itself and the weight 1; in mixup the weight is lambda,
    in cutmix the share of the image that is not pasted over. The partner's label has the rest.
    """
    if records.mix is None:
        return index, torch.ones(len(index), device=index.device)
    partner = _pick(records, "partner", view, index).long()
    if records.mix == "mixup":
        return partner, _pick(records, "lambda", view, index)
    box = _pick(records, "box", view, index).float()
    return partner, 1 - box[:, 2] * box[:, 3] / image_size**2


def _sample_view(
    cfg: RelabelConfig, ops: Sequence[str], count: int, size: int, draw: torch.Generator
) -> dict[str, Tensor]:
    record: dict[str, Tensor] = {}
    if cfg.crop == "resized":
        record["crop"] = random_resized_boxes(count, size, size, cfg.crop_scale, draw)
    elif cfg.crop == "padded":
        corner = torch.randint(-cfg.padding, cfg.padding + 1, (count, 2), generator=draw)
        record["crop"] = torch.cat([corner, torch.full((count, 2), size)], dim=1)
    if "flip" in ops:
        record["flip"] = chance(count, 0.5 if cfg.flip else 0.0, draw)
    group = torch.zeros(count, dtype=torch.int64)
    if cfg.teacher_bn == "batch":
        record["group"] = group = _random_groups(count, cfg.group, draw)
    if cfg.mix != "none":
        record["partner"] = _random_partners(group, draw)
        own_share = _beta(count, cfg.mix_alpha, draw)
        if cfg.mix == "mixup":
            record["lambda"] = round_lambda(own_share.float())
        else:
            record["box"] = _random_boxes(own_share, size, draw)
    # Drawn last, so that the other parameters are the same with it and without.
    if cfg.randaugment is not None:
        steps, magnitude = cfg.randaugment.count, cfg.randaugment.magnitude
        record["randaugment"] = random_steps(count, steps, magnitude, size, draw)
    return record


def _random_groups(count: int, size: int, draw: torch.Generator) -> Tensor:
    """Assign images [count] to ceil(count / size) groups, or fewer so that none has one image."""
    if count < 2:
        raise ValueError(
            "one image alone has no batch statistics; label it with teacher_bn running"
        )
    groups = min(math.ceil(count / size), count // 2)
    assigned = torch.empty(count, dtype=torch.int64)
    assigned[torch.randperm(count, generator=draw)] = torch.arange(count) * groups // count
    return assigned


def _random_partners(group: Tensor, draw: torch.Generator) -> Tensor:
    """Permute the images of each group at random; return the partner of each [count]."""
    shuffled = torch.randperm(len(group), generator=draw)
    shuffled = shuffled[group[shuffled].argsort(stable=True)]
    partner = torch.empty_like(shuffled)
    partner[group.argsort(stable=True)] = shuffled
    return partner


def _beta(count: int, alpha: float, draw: torch.Generator) -> Tensor:
    """Draw float64 [count] from Beta(alpha, alpha): X / (X + Y) of two gamma variables.

    Gamma(alpha) is Gamma(alpha + 1) * U^(1 / alpha); in logarithms a small alpha cannot give 0 / 0.
    """
    shape = torch.full((2, count), alpha + 1, dtype=torch.float64)
    power = 1 - torch.rand(2, count, generator=draw, dtype=torch.float64)
    logarithm = torch._standard_gamma(shape, generator=draw).log() + power.log() / alpha
    return torch.sigmoid(logarithm[0] - logarithm[1])


def _random_boxes(own_share: Tensor, size: int, draw: torch.Generator) -> Tensor:
    """Boxes [count, 4] of side sqrt(1 - share) * size with a uniform centre, cut at the border."""
    half = ((1 - own_share).sqrt() * size / 2).long()[:, None]
    centre = torch.randint(size, (len(own_share), 2), generator=draw)
    corner = (centre - half).clamp(0, size)
    return torch.cat([corner, (centre + half).clamp(0, size) - corner], dim=1)


def _unmixed(images: Tensor, records: ViewRecords, view: int, index: Tensor) -> Tensor:
    shown = _crop_and_flip(images, records, view, index)
    if "rot90" in records.ops:
        turns = _pick(records, "rot90", view, index).to(images.device).view(-1, 1, 1, 1)
        for quarters in (1, 2, 3):
            shown = torch.where(turns == quarters, torch.rot90(shown, quarters, (2, 3)), shown)
    if "randaugment" not in records.ops:
        return shown
    whole = (shown * 255).round_().to(torch.uint8)
    return randaugment(whole, _pick(records, "randaugment", view, index)).float() / 255


def _crop_and_flip(images: Tensor, records: ViewRecords, view: int, index: Tensor) -> Tensor:
    picked = images.index_select(0, index.to(images.device)).float() / 255
    flip = None
    if "flip" in records.ops:
        flip = _pick(records, "flip", view, index).to(images.device).bool()
    if "crop" in records.ops:
        boxes = _pick(records, "crop", view, index).to(images.device).long()
        return resized_crop(picked, boxes, images.shape[-1], flip)
    if flip is not None:
        picked = torch.where(flip.view(-1, 1, 1, 1), picked.flip(3), picked)
    return picked


def _pick(records: ViewRecords, name: str, view: int, index: Tensor) -> Tensor:
    values = records.parameters[name]
    return values[view][index.to(values.device)]


def _span(start: Tensor, length: Tensor, extent: int) -> Tensor:
    """Mask [B, extent] of the positions start .. start + length - 1."""
    position = torch.arange(extent, device=start.device)[None]
    return (position >= start[:, None]) & (position < (start + length)[:, None])
