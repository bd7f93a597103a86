"""Recover: synthesise images whose class and BatchNorm statistics the teacher knows.

SC-DD (arXiv:2404.07976), Eq. 8 and 9; the loop is SRe2L's (arXiv:2306.13092).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.augment import chance, denormalise, normalise, random_resized_boxes, resized_crop
from scdd.bn_statistics import with_matched_statistics
from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.recover import RecoverConfig
from scdd.config.section import Triple
from scdd.errors import RunError
from scdd.seeding import generator
from scdd.training import cosine, set_lr

Advance = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of the distilled set that are recovered together."""

    index: int
    labels: Tensor
    """int64 [B]."""
    start: Tensor | None
    """uint8 [B, 3, S, S]: the real images to start from; None: Gaussian noise."""


def batches_of(ipc: int, classes: int, batch: int, start: Tensor | None = None) -> list[Batch]:
    """Cut the C * ipc rows, rank-major, into consecutive batches of `batch`."""
    labels = torch.arange(classes).repeat(ipc)
    starts = [None] * len(labels) if start is None else start.split(batch)
    return [Batch(index, part, starts[index]) for index, part in enumerate(labels.split(batch))]


def recover(
    cfg: RecoverConfig,
    teacher: nn.Module,
    batch: Batch,
    image_size: int,
    mean: Triple,
    std: Triple,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    advance: Advance = lambda note: None,
    log: Callable[..., None] = lambda **values: None,
) -> Tensor:
    """Return the recovered images of one batch: uint8 [B, 3, S, S], rounded.

    Minimises cross-entropy + alpha * BatchNorm matching with Adam in normalised pixel space, on a
    random view of the images at each iteration; the last iterate is the result.

    Raises:
        RunError: if the loss stops being finite.
    """
    matched = with_matched_statistics(teacher, cfg.first_bn_multiplier).to(device)
    labels = batch.labels.to(device)
    draw = generator(seed, "recover", batch.index, device=device)
    low, high = (
        normalise(torch.full((1, 3, 1, 1), edge, device=device), mean, std) for edge in (0.0, 1.0)
    )
    x = _start(batch, image_size, mean, std, draw, device).requires_grad_(True)
    optimizer = torch.optim.Adam([x], lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay)
    step = _restore(checkpoint, x, optimizer, draw)
    while step < cfg.iterations:
        set_lr(optimizer, cfg.lr * cosine(step / cfg.iterations))
        logits, matching_loss = matched(random_view(x, cfg, draw))
        class_loss = F.cross_entropy(logits.float(), labels)
        loss = class_loss + cfg.alpha * matching_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            x.clamp_(low, high)
        step += 1
        advance(f"batch {batch.index + 1}")
        if step % 50 == 0 or step == cfg.iterations:
            _report(batch.index, step, class_loss, matching_loss, log)
        if checkpoint.due:
            checkpoint.save(_state(step, x, optimizer, draw))
    pixels = denormalise(x.detach(), mean, std)
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8).cpu()


def random_view(x: Tensor, cfg: RecoverConfig, draw: torch.Generator) -> Tensor:
    """Crop, flip and roll [B, 3, S, S]; one draw for the batch, or one per image."""
    size = x.shape[-1]
    if cfg.crop != "none":
        count = len(x) if cfg.crop == "sample" else 1
        boxes = random_resized_boxes(count, size, size, cfg.crop_scale, draw)
        x = resized_crop(x, boxes, size, chance(count, 0.5 if cfg.flip else 0.0, draw))
    if cfg.roll:
        shift = torch.randint(cfg.roll + 1, (2,), generator=draw, device=draw.device).tolist()
        x = torch.roll(x, shift, dims=(2, 3))
    return x


def _start(
    batch: Batch,
    image_size: int,
    mean: Triple,
    std: Triple,
    draw: torch.Generator,
    device: torch.device,
) -> Tensor:
    if batch.start is not None:
        return normalise(batch.start.to(device).float() / 255, mean, std)
    shape = (len(batch.labels), 3, image_size, image_size)
    return torch.randn(shape, generator=draw, device=device)


def _report(
    index: int, step: int, class_loss: Tensor, matching_loss: Tensor, log: Callable[..., None]
) -> None:
    values = {"class_loss": class_loss.item(), "matching_loss": matching_loss.item()}
    if not all(math.isfinite(value) for value in values.values()):
        raise RunError(
            f"recover: batch {index + 1} diverged at iteration {step} ({values}); lower "
            "recover.lr or recover.alpha and run again with --redo recover"
        )
    log(batch=index, iteration=step, **values)


def _state(
    step: int, x: Tensor, optimizer: torch.optim.Optimizer, draw: torch.Generator
) -> dict[str, object]:
    return {
        "step": step,
        "images": x.detach(),
        "optimizer": optimizer.state_dict(),
        "draw": draw.get_state(),
    }


def _restore(
    checkpoint: Checkpoint, x: Tensor, optimizer: torch.optim.Optimizer, draw: torch.Generator
) -> int:
    state = checkpoint.load()
    if state is None:
        return 0
    with torch.no_grad():
        x.copy_(state["images"])
    optimizer.load_state_dict(state["optimizer"])
    draw.set_state(state["draw"])
    return int(state["step"])
