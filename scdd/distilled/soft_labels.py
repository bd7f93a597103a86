"""How soft labels are stored: one codec per name, from float32 logits to datasets and back."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scdd.config.relabel import RelabelConfig
from scdd.errors import ConfigError, RunError

FLOAT16_MAX = torch.finfo(torch.float16).max

Arrays = dict[str, Tensor]
"""One tensor [..., *shape] per dataset of a codec."""


@dataclass(frozen=True)
class Codec:
    """What is stored per label, and the two directions."""

    name: str
    layout: dict[str, tuple[str, tuple[int, ...]]]
    """Dataset: (numpy dtype, shape of one label), to be stored as [V, N, *shape]."""
    encode: Callable[[Tensor], Arrays]
    """From logits float32 [..., C]; raises RunError if one cannot be stored."""
    decode: Callable[[Arrays], Tensor]
    """To logits float32 [..., C]; raises ValueError if what is stored makes no sense."""
    attributes: dict[str, int] = field(default_factory=dict)
    """What the file says of the codec besides its name."""

    @property
    def bytes_a_label(self) -> int:
        """Bytes of one soft label."""
        return sum(np.dtype(kind).itemsize * math.prod(s) for kind, s in self.layout.values())


def full(classes: int) -> Codec:
    """Logits as float16."""

    def encode(logits: Tensor) -> Arrays:
        _check_storable(logits, "full")
        return {"logits": logits.to(torch.float16)}

    return Codec(
        "full", {"logits": ("<f2", (classes,))}, encode, lambda arrays: arrays["logits"].float()
    )


def int8(classes: int) -> Codec:
    """Logits in 256 equal steps between the smallest and the largest of each label.

    No logit moves by more than half a step, 1/510 of its label's range, and the rounding of `low`
    to float16.
    """
    return _steps("int8", classes, classes, 255, lambda count: count, lambda stored: stored)


def int4(classes: int) -> Codec:
    """As `int8` in 16 steps, two classes a byte: 1/30 of the range at most."""

    def pack(count: Tensor) -> Tensor:
        low, high = F.pad(count, (0, classes % 2)).unflatten(-1, (-1, 2)).unbind(-1)
        return low | high << 4

    def unpack(stored: Tensor) -> Tensor:
        return torch.stack([stored & 15, stored >> 4], -1).flatten(-2)[..., :classes]

    return _steps("int4", classes, (classes + 1) // 2, 15, pack, unpack)


def _steps(
    name: str,
    classes: int,
    width: int,
    most: int,
    pack: Callable[[Tensor], Tensor],
    unpack: Callable[[Tensor], Tensor],
) -> Codec:
    """Logits as multiples 0 .. `most` of a step of each label, packed into `width` bytes."""

    def encode(logits: Tensor) -> Arrays:
        _check_storable(logits, name)
        low = logits.amin(-1, keepdim=True).to(torch.float16)
        above = (logits - low.float()).clamp(min=0)
        extent = above.amax(-1, keepdim=True)
        step = (extent / most).to(torch.float16)
        # Rounded down, the steps would end below the largest logit.
        step = torch.where(most * step.float() < extent, _next_float16(step), step)
        count = (above / step.float().clamp(min=1e-30)).round().to(torch.uint8)
        return {"steps": pack(count), "low": low[..., 0], "step": step[..., 0]}

    def decode(arrays: Arrays) -> Tensor:
        low, step = arrays["low"].float(), arrays["step"].float()
        return low[..., None] + step[..., None] * unpack(arrays["steps"]).float()

    layout = {"steps": ("|u1", (width,)), "low": ("<f2", ()), "step": ("<f2", ())}
    return Codec(name, layout, encode, decode)


def topk(classes: int, top: int, temperature: float = 1.0) -> Codec:
    """The `top` largest logits with their classes, and one logit for all others.

    That one gives the others, together, the probability that they have at `temperature`; at other
    temperatures it is an approximation.

    Raises:
        ValueError: if `top` is not in 1 .. C - 1.
    """
    if not 1 <= top < classes:
        raise ValueError(f"top is {top}, not in 1 .. {classes - 1}")
    index = _index_dtype(classes)

    def encode(logits: Tensor) -> Arrays:
        _check_storable(logits, "topk")
        values, order = logits.topk(top, dim=-1)
        others = logits.scatter(-1, order, -torch.inf) / temperature
        rest = temperature * (others.logsumexp(-1) - math.log(classes - top))
        return {
            "classes": order.to(index),
            "values": values.to(torch.float16),
            "rest": rest.to(torch.float16),
        }

    def decode(arrays: Arrays) -> Tensor:
        order = arrays["classes"].long()
        # Elsewhere the check would wait for the device; what goes there has been checked here.
        if order.device.type == "cpu" and (order >= classes).any():
            raise ValueError("a class is named that does not exist")
        rest = arrays["rest"].float()[..., None].expand(*arrays["rest"].shape, classes)
        return rest.scatter(-1, order, arrays["values"].float())

    layout = {
        "classes": (np.dtype(str(index).removeprefix("torch.")).newbyteorder("<").str, (top,)),
        "values": ("<f2", (top,)),
        "rest": ("<f2", ()),
    }
    return Codec("topk", layout, encode, decode, {"top": top})


def teacher(classes: int) -> Codec:
    """No labels at all: who has the teacher's weights computes them on the stored views."""

    def decode(arrays: Arrays) -> Tensor:
        raise ValueError("labels that the teacher is to compute cannot be read")

    return Codec("teacher", {}, lambda logits: {}, decode)


CODECS = ("full", "int8", "int4", "topk", "teacher")


def make_codec(
    name: str, classes: int, attributes: Mapping[str, object] | None = None, temperature: float = 1
) -> Codec:
    """Return the codec of a name for a number of classes.

    Args:
        attributes: what the file says of it: `top` of topk.
        temperature: of topk, when encoding.

    Raises:
        ValueError: if there is no such codec, or the attributes do not fit it.
    """
    found = dict(attributes or {})
    if name == "topk":
        top = found.pop("top", None)
        if type(top) is not int:
            raise ValueError(f"top of codec 'topk' is {top}, not a number")
        codec = topk(classes, top, temperature)
    elif name in CODECS:
        codec = {"full": full, "int8": int8, "int4": int4, "teacher": teacher}[name](classes)
    else:
        raise ValueError(f"codec '{name}' is unknown; known: {', '.join(CODECS)}")
    if found:
        raise ValueError(f"codec '{name}' has no {', '.join(found)}")
    return codec


def codec_of(cfg: RelabelConfig, classes: int) -> Codec | None:
    """Return the codec that a configuration asks for; None for `hard`.

    Raises:
        ConfigError: if there are too few classes for it.
    """
    if cfg.codec == "hard":
        return None
    attributes = {"top": cfg.top} if cfg.codec == "topk" else {}
    try:
        return make_codec(cfg.codec, classes, attributes, cfg.rest_temperature)
    except ValueError as error:
        raise ConfigError(f"relabel.{error}; change it, or relabel.codec") from error


def _check_storable(logits: Tensor, codec: str) -> None:
    if not torch.isfinite(logits).all():
        raise RunError(
            "the teacher's logits are not finite, so the teacher has diverged; train it again "
            "with a lower learning rate"
        )
    largest = logits.abs().max().item() if logits.numel() else 0.0
    if largest > FLOAT16_MAX:
        raise RunError(
            f"the teacher's logits reach {largest:.4g}, but codec '{codec}' (float16) ends at "
            f"{FLOAT16_MAX:.0f}; train the teacher again with a lower learning rate"
        )


def _next_float16(values: Tensor) -> Tensor:
    """The next larger float16 of values that are not negative."""
    return (values.view(torch.int16) + 1).view(torch.float16)


def _index_dtype(classes: int) -> torch.dtype:
    """The smallest dtype that numbers all classes."""
    if classes <= 2**8:
        return torch.uint8
    return torch.uint16 if classes <= 2**16 else torch.int32
