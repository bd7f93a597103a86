"""How soft labels are stored: one codec per name, from float32 logits to datasets and back."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scdd.errors import RunError

FLOAT16_MAX = torch.finfo(torch.float16).max

Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Dataset name: (numpy dtype, shape of one label)."""


@dataclass(frozen=True)
class Codec:
    """What is stored per label, and the two directions."""

    layout: Callable[[int], Layout]
    """From the number of classes to the datasets, each of shape [V, N, *shape]."""
    encode: Callable[[Tensor], dict[str, Tensor]]
    """From logits float32 [..., C] to one tensor per dataset."""
    decode: Callable[[dict[str, Tensor]], Tensor]
    """From one tensor per dataset to logits float32 [..., C]."""


def _full_layout(classes: int) -> Layout:
    return {"logits": ("<f2", (classes,))}


def _encode_full(logits: Tensor) -> dict[str, Tensor]:
    """Round to float16.

    Raises:
        RunError: if a logit is not finite or too large for float16.
    """
    if not torch.isfinite(logits).all():
        raise RunError(
            "the teacher's logits are not finite, so the teacher has diverged; train it again "
            "with a lower learning rate"
        )
    largest = logits.abs().max().item() if logits.numel() else 0.0
    if largest > FLOAT16_MAX:
        raise RunError(
            f"the teacher's logits reach {largest:.4g}, but codec 'full' (float16) ends at "
            f"{FLOAT16_MAX:.0f}; train the teacher again with a lower learning rate"
        )
    return {"logits": logits.to(torch.float16)}


def _decode_full(arrays: dict[str, Tensor]) -> Tensor:
    return arrays["logits"].float()


CODECS: dict[str, Codec] = {"full": Codec(_full_layout, _encode_full, _decode_full)}
