"""Recover: synthesise images whose class and BatchNorm statistics the teacher knows.

SC-DD (arXiv:2404.07976), Eq. 8 and 9; the loop is SRe2L's (arXiv:2306.13092). Images of a batch
meet in its statistics alone, and batches do not meet at all, so groups of batches share a pass.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scdd.augment import denormalise, normalise
from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.recover import RecoverConfig
from scdd.config.section import Triple
from scdd.errors import RunError
from scdd.recovery import Terms, draw_views
from scdd.seeding import generator
from scdd.training import cosine, set_lr

Advance = Callable[[str], None]
LossFunction = Callable[..., Terms]
REPORT_EVERY = 50
"""Iterations; in the last round of turns before each the host looks at the losses."""
FIRST_ROUNDS = (1, 2, 5, 10, 20)
"""Rounds of turns in which it does so too, as losses fall fastest at the start."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of the distilled set that are recovered together."""

    index: int
    rows: Tensor
    """int64 [B]: which rows."""
    labels: Tensor
    """int64 [B]."""
    start: Tensor | None = None
    """uint8 [B, 3, S, S]: the real images to start from; None: Gaussian noise."""


def batches_of(cfg: RecoverConfig, ipc: int, classes: int, seed: int) -> list[Batch]:
    """Cut the C * ipc rows, rank-major, into batches, all but the last of `cfg.batch`.

    With `cfg.order` shuffled the rows of each rank are shuffled first.
    """
    order = torch.arange(classes * ipc).view(ipc, classes)
    if cfg.order == "shuffled":
        draws = [generator(seed, "recover.order", rank) for rank in range(ipc)]
        order = torch.stack(
            [
                row[torch.randperm(classes, generator=draw)]
                for row, draw in zip(order, draws, strict=True)
            ]
        )
    parts = order.flatten().split(cfg.batch)
    return [Batch(index, rows, rows % classes) for index, rows in enumerate(parts)]


def groups_of(batches: Sequence[Batch], size: int) -> list[list[Batch]]:
    """Put batches of one size together, at most `size` in a group, in their order."""
    groups: list[list[Batch]] = []
    for batch in batches:
        fits = groups and len(groups[-1]) < size
        if fits and len(groups[-1][0].rows) == len(batch.rows):
            groups[-1].append(batch)
        else:
            groups.append([batch])
    return groups


def recover(
    cfg: RecoverConfig,
    losses: Sequence[LossFunction],
    group: Sequence[Batch],
    image_size: int,
    mean: Triple,
    std: Triple,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    advance: Advance = lambda note: None,
    log: Callable[..., None] = lambda **values: None,
) -> Tensor:
    """Return the recovered images of a group of batches: uint8 [G * B, 3, S, S].

    Minimises cross-entropy + alpha * BatchNorm matching with Adam in normalised pixel space, on a
    random view of the images at each iteration; the last iterate is the result. What a batch
    becomes depends on its number and the seed, but for rounding not on its group.

    Args:
        cfg: the settings.
        losses: `RecoveryLoss` of each teacher for groups of this size, compiled or not; they take
            turns, an iteration each.
        group: batches of one size.
        image_size: S.
        mean, std: of the pixels, as the teachers know them.
        seed: of the run.
        device: where to compute.
        checkpoint: the state of the loop.
        advance: called after each iteration with a word on where it stands.
        log: called with the losses of each batch, now and then, of every teacher.

    Raises:
        RunError: if a loss or a pixel stops being finite, or the images are stuck.
    """
    labels = torch.cat([batch.labels for batch in group]).to(device)
    draws = [generator(seed, "recover", batch.index) for batch in group]
    low, high = (
        normalise(torch.full((1, 3, 1, 1), edge, device=device), mean, std) for edge in (0.0, 1.0)
    )
    begun = _start(group, image_size, mean, std, draws).to(device)
    x = begun.clone().requires_grad_(True)
    learnt = [parameter for loss in losses for parameter in _learnt(loss)]
    optimizer = _optimizer(cfg, x, learnt)
    merges = {round(cfg.iterations * n / (cfg.merges + 1)) for n in range(1, cfg.merges + 1)}
    step = _restore(checkpoint, x, learnt, optimizer, draws)
    numbers = [batch.index + 1 for batch in group]
    note = f"batch {numbers[0]}" + (f" to {numbers[-1]}" if len(numbers) > 1 else "")
    while step < cfg.iterations:
        done = step / cfg.iterations
        if step in merges:
            with torch.no_grad():
                x.lerp_(begun, 1 - cfg.merge_share)
            optimizer = _optimizer(cfg, x, learnt)
        set_lr(optimizer, cfg.lr * _rate(cfg, done))
        view = draw_views(cfg, image_size, len(x) // len(group), done, draws)
        alpha = torch.full((), _alpha(cfg, done), device=device)
        shown = None if view is None else view.to(device)
        if device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        turn = step % len(losses)
        terms = losses[turn](x, labels, shown, alpha)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        with torch.no_grad():
            x.clamp_(low, high)
        step += 1
        advance(note)
        if _is_reported(step, cfg.iterations, len(losses)):
            _report(group, step, turn, terms, log)
        if checkpoint.due:
            checkpoint.save(_state(step, x, learnt, optimizer, draws))
    _check_images(x.detach(), begun.clamp(low, high), low, high, note)
    return to_bytes(denormalise(x.detach(), mean, std).cpu(), cfg.save)


def to_bytes(pixels: Tensor, save: str) -> Tensor:
    """Turn images [N, 3, S, S] in [0, 1] into uint8, rounded; or as the paper's images were saved.

    Those were cut to whole numbers and stored as JPEG of quality 75 with halved colour resolution.
    """
    scaled = (pixels * 255).clamp(0, 255)
    if save == "lossless":
        return scaled.round().to(torch.uint8)
    from PIL import Image

    restored = []
    for image in scaled.to(torch.uint8):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=75)
        array = torch.frombuffer(bytearray(Image.open(file).tobytes()), dtype=torch.uint8)
        restored.append(array.view(*image.shape[1:], 3).permute(2, 0, 1))
    return torch.stack(restored)


def _learnt(loss: LossFunction) -> list[nn.Parameter]:
    """What a loss learns with the images, as it is at the start."""
    found = getattr(loss, "log_scale", None)
    if found is None:
        return []
    with torch.no_grad():
        found.zero_()
    return [found]


def _optimizer(cfg: RecoverConfig, x: Tensor, learnt: Sequence[Tensor]) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [{"params": [x], "weight_decay": cfg.weight_decay}]
    if learnt:
        groups.append({"params": list(learnt), "weight_decay": 0.0})
    return torch.optim.Adam(groups, lr=cfg.lr, betas=cfg.betas, fused=True)


def _rate(cfg: RecoverConfig, done: float) -> float:
    """Share of the peak rate."""
    warmup = cfg.warmup / cfg.iterations
    if cfg.schedule == "constant":
        return min(1.0, done / warmup) if warmup else 1.0
    return cosine(done, warmup)


def _alpha(cfg: RecoverConfig, done: float) -> float:
    end = cfg.alpha if cfg.alpha_end is None else cfg.alpha_end
    return end + (cfg.alpha - end) * cosine(done)


def _start(
    group: Sequence[Batch],
    image_size: int,
    mean: Triple,
    std: Triple,
    draws: Sequence[torch.Generator],
) -> Tensor:
    parts = []
    for batch, draw in zip(group, draws, strict=True):
        if batch.start is not None:
            parts.append(normalise(batch.start.float() / 255, mean, std))
        else:
            shape = (len(batch.rows), 3, image_size, image_size)
            parts.append(torch.randn(shape, generator=draw))
    return torch.cat(parts)


def _is_reported(step: int, iterations: int, turns: int) -> bool:
    """Whether the losses of iteration `step`, counted from 1, are looked at."""
    last_round = step > iterations - turns
    return -(-step // turns) in FIRST_ROUNDS or -step % REPORT_EVERY < turns or last_round


def _check_images(x: Tensor, begun: Tensor, low: Tensor, high: Tensor, note: str) -> None:
    """Refuse what no loss tells of: pixels that are no numbers, or that Adam could not move.

    Its squared gradients overflow long before the losses do, and then no step is made.
    """
    if not torch.isfinite(x).all():
        found = "ends with pixels that are no numbers"
    elif torch.equal(x, begun):
        found = "has not moved from its start, as its gradients are out of range"
    elif ((x == low) | (x == high)).all():
        found = "ends with every pixel at the end of its range"
    else:
        return
    raise RunError(
        f"recover: {note} {found}; lower recover.lr or recover.alpha and run again with "
        "--redo recover"
    )


def _report(
    group: Sequence[Batch], step: int, teacher: int, terms: Terms, log: Callable[..., None]
) -> None:
    class_loss, matching_loss = terms.class_loss.tolist(), terms.matching_loss.tolist()
    for batch, one, other in zip(group, class_loss, matching_loss, strict=True):
        values = {"class_loss": one, "matching_loss": other}
        if not all(math.isfinite(value) for value in values.values()):
            raise RunError(
                f"recover: batch {batch.index + 1} diverged at iteration {step} (class loss "
                f"{one:g}, matching loss {other:g}); lower recover.lr or recover.alpha and run "
                "again with --redo recover"
            )
        log(batch=batch.index, iteration=step, teacher=teacher, **values)
    distances = terms.distances.mean(dim=2).tolist()
    layers = [[float(f"{value:.4g}") for value in pair] for pair in distances]
    numbers = [batch.index for batch in group]
    log(batches=numbers, iteration=step, teacher=teacher, layers=layers)


def _state(
    step: int,
    x: Tensor,
    learnt: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    draws: Sequence[torch.Generator],
) -> dict[str, object]:
    return {
        "step": step,
        "images": x.detach(),
        "learnt": [tensor.detach() for tensor in learnt],
        "optimizer": optimizer.state_dict(),
        "draws": [draw.get_state() for draw in draws],
    }


def _restore(
    checkpoint: Checkpoint,
    x: Tensor,
    learnt: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    draws: Sequence[torch.Generator],
) -> int:
    state = checkpoint.load()
    if state is None:
        return 0
    with torch.no_grad():
        for tensor, value in zip((x, *learnt), (state["images"], *state["learnt"]), strict=True):
            tensor.copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    for draw, value in zip(draws, state["draws"], strict=True):
        draw.set_state(value)
    return int(state["step"])
