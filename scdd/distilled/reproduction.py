"""Stored soft labels held against the networks that made them, computed once more."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from scdd.distilled.labelling import Labellers, label_views, passes
from scdd.distilled.reader import DistilledFile
from scdd.distilled.soft_labels import Codec

ACROSS_DEVICES = 0.01
"""By which labels of two machines may differ, as a share of the range of all logits of a view."""
IMAGES_A_VIEW = 2000
"""About how many images of a view are labelled, if there are more."""


class Deviation(NamedTuple):
    """How far a stored label is from what the networks say now."""

    share: float
    """Largest difference, as a share of the range of the logits of its view."""
    allowed: float
    """Largest share that devices and the codec explain."""
    view: int
    image: int


def deviations(file: DistilledFile, labellers: Labellers) -> Iterator[Deviation]:
    """Label the first, the middle and the last view again; yield one of each label.

    Args:
        file: with soft labels that are stored.
        labellers: the networks that are to have made them, on the CPU.

    Raises:
        FormatError: if the file cannot be used.
    """
    records, codec = file.views, file.codec
    assert records is not None and codec is not None and codec.layout
    images, header = file.images(), file.header
    for view in sorted({0, file.num_views // 2, file.num_views - 1}):
        parts = passes(records, view, len(images))[:: max(1, round(len(images) / IMAGES_A_VIEW))]
        made = label_views(
            labellers, images, records, view, header.mean, header.std, images.device, parts
        )
        rows, logits = (torch.cat(tensors) for tensors in zip(*made, strict=True))
        order = rows.argsort()
        rows, logits = rows[order], logits[order]
        extent = max((logits.max() - logits.min()).item(), torch.finfo(torch.float32).tiny)
        shares = _distance(file, codec, view, rows, logits) / extent
        allowed = ACROSS_DEVICES + _rounding(codec, logits) / extent
        for share, most, row in zip(shares.tolist(), allowed.tolist(), rows.tolist(), strict=True):
            yield Deviation(share, most, view, row)


def _distance(file: DistilledFile, codec: Codec, view: int, rows: Tensor, logits: Tensor) -> Tensor:
    """Largest difference [B] of stored labels from logits, in so far as the codec states them."""
    stored = file.logits(view, rows.numpy())
    if codec.name != "topk":
        return (stored - logits).abs().amax(dim=1)
    encoded = file.encoded(view, rows.numpy())
    top, rest = encoded["classes"].long(), encoded["rest"].float()
    others = torch.ones_like(logits).scatter(1, top, 0).bool()
    largest = logits.masked_fill(~others, -torch.inf).amax(dim=1)
    smallest = logits.masked_fill(~others, torch.inf).amin(dim=1)
    values = stored.gather(1, top)
    faults = [
        (values - logits.gather(1, top)).abs().amax(dim=1),
        largest - values.amin(dim=1),  # No other class is above those that are kept,
        rest - largest,  # and what stands for the others is one of the values between theirs.
        smallest - rest,
    ]
    return torch.stack(faults).amax(dim=0).clamp(min=0)


def _rounding(codec: Codec, logits: Tensor) -> Tensor:
    """How far [B] the codec itself may move a logit."""
    float16 = logits.abs().amax(dim=1) * torch.finfo(torch.float16).eps / 2
    steps = {"int8": 255, "int4": 15}.get(codec.name)
    if steps is None:
        return float16
    return float16 + (logits.amax(dim=1) - logits.amin(dim=1)) / (2 * steps) * (1 + 2**-10)
