"""Probe: a linear classifier on the frozen backbone makes it the teacher (SC-DD, section 2.2)."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.augment import CropDraw, chance, normalise
from scdd.augment.crops import ATTEMPTS
from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.probe import ProbeConfig
from scdd.datasets.sources import ImageSource, Request
from scdd.errors import RunError
from scdd.models import recreate
from scdd.probing import Standardisation, features, fit_linear, measure_standardisation
from scdd.progress import Bar
from scdd.seeding import generator
from scdd.training import Accuracy, cosine, evaluate, evaluating

BLOCK = 500
"""Images of a forward pass that computes features; their crops are drawn block by block."""
BLOCKS_PER_SHARD = 10


class FeatureShard(NamedTuple):
    """Features of the training images from `first` up to, not including, `last`."""

    view: int
    """0: of the whole images; n: of the n-th random resized crop of each."""
    first: int
    last: int


Stored = Callable[[FeatureShard], Tensor]


class Head(NamedTuple):
    """A linear classifier."""

    weight: Tensor
    """[C, D]."""
    bias: Tensor
    """[C]."""


class Probed(NamedTuple):
    """The teacher and how it came about."""

    teacher: nn.Module
    accuracy: Accuracy
    """On the validation images, by which nothing is chosen."""
    chosen: dict[str, float]
    """The penalty (`l2`) or the rate (`lr`) that was used, if there is one."""
    tried: dict[float, float]
    """Every candidate for it, with its accuracy in per cent on the held-out share of train."""


def shards_of(cfg: ProbeConfig, images: int) -> list[FeatureShard]:
    """List the features of `images` training images that the solver looks at more than once."""
    sgd_looks = cfg.standardise or len(cfg.lr) > 1
    views = {"lbfgs": 1 + cfg.crops, "sgd": int(sgd_looks), "given": 0}[cfg.solver]
    stride = BLOCK * BLOCKS_PER_SHARD
    return [
        FeatureShard(view, first, min(first + stride, images))
        for view in range(views)
        for first in range(0, images, stride)
    ]


@torch.no_grad()
def shard_features(
    cfg: ProbeConfig,
    backbone: nn.Module,
    train: ImageSource,
    shard: FeatureShard,
    seed: int,
    device: torch.device,
) -> Tensor:
    """Eval-mode features [last - first, D] on `device`; no other shard has to be known."""
    rows = torch.arange(shard.first, shard.last)
    if shard.view == 0:
        return features(backbone, train, device, BLOCK, rows)
    draws = (
        (block, generator(seed, "probe.crops", shard.view - 1, int(block[0]) // BLOCK))
        for block in rows.split(BLOCK)
    )
    requests = (_request(cfg, backbone, block, draw) for block, draw in draws)
    with evaluating(backbone):
        return torch.cat(
            [_forward(backbone, train, crops, device) for (crops,) in train.crops(requests)]
        )


def probe(
    cfg: ProbeConfig,
    backbone: nn.Module,
    train: ImageSource,
    val: ImageSource,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    stored: Stored | None = None,
    given: Head | None = None,
) -> Probed:
    """Fit the head on eval-mode features of the training images; BatchNorm buffers never move.

    With several penalties or rates, the one that is best on a held-out share of train is used, and
    the head fitted again on all of train.

    Args:
        cfg: the settings.
        backbone: [B, 3, S, S] to features [B, D]; the images are normalised as the sources say.
        train: what the head is fitted on.
        val: what the teacher is measured on.
        seed: of crops, order and held-out share.
        device: where to compute.
        checkpoint: the state of the solver `sgd`.
        stored: returns the features of a shard, which are computed here if it is not given.
        given: the head that the solver `given` takes.

    Raises:
        RunError: if no rate of the solver `sgd` leads anywhere.
    """
    backbone = backbone.to(device).eval()
    stored = stored or (lambda shard: shard_features(cfg, backbone, train, shard, seed, device))
    fit = _Fit(cfg, backbone, train, seed, device, stored)
    chosen: dict[str, float] = {}
    tried: dict[float, float] = {}
    if cfg.solver == "given":
        assert given is not None
        head = given
    elif cfg.solver == "lbfgs":
        head, l2, tried = _fit_lbfgs(fit)
        chosen = {"l2": l2}
    else:
        head, lr, tried = _fit_sgd(fit, checkpoint)
        chosen = {"lr": lr}
    teacher = _with_head(backbone, head).to(device).eval()
    return Probed(teacher, evaluate(teacher, val, device), chosen, tried)


@dataclass(frozen=True)
class _Fit:
    """What a solver works with."""

    cfg: ProbeConfig
    backbone: nn.Module
    train: ImageSource
    seed: int
    device: torch.device
    stored: Stored

    @property
    def shards(self) -> list[FeatureShard]:
        return shards_of(self.cfg, len(self.train))


def _fit_lbfgs(fit: _Fit) -> tuple[Head, float, dict[float, float]]:
    """The optimum on the features of all views."""
    cfg, train = fit.cfg, fit.train
    labels = train.labels.to(fit.device)
    stacked = torch.cat([fit.stored(shard).to(fit.device) for shard in fit.shards])
    views = stacked.view(1 + cfg.crops, len(train), -1)

    def fitted(rows: Tensor | slice, l2: float) -> Head:
        x, y = views[:, rows].flatten(0, 1), labels[rows].repeat(len(views))
        return Head(*fit_linear(x, y, len(train.classes), l2, cfg.iterations))

    def held_out_accuracy(l2: float) -> float:
        head, y = fitted(rest, l2), labels[held].repeat(len(views))
        right = _right(F.linear(views[:, held].flatten(0, 1), *head), y)
        return 100 * int(right) / len(y)

    held, rest = (rows.to(fit.device) for rows in _held_out(cfg, len(train), fit.seed))
    tried = {l2: held_out_accuracy(l2) for l2 in cfg.l2} if len(cfg.l2) > 1 else {}
    l2 = _best(tried, cfg.l2)
    return fitted(slice(None), l2), l2, tried


def _fit_sgd(fit: _Fit, checkpoint: Checkpoint) -> tuple[Head, float, dict[float, float]]:
    """Epochs over random crops: a head for each rate on the same features, then the best alone."""
    cfg, train = fit.cfg, fit.train
    scaling = _scaling(fit)
    state = checkpoint.load()
    tried: dict[float, float] = dict(state["tried"]) if state else {}
    if len(cfg.lr) > 1 and not tried:
        held, rest = _held_out(cfg, len(train), fit.seed)
        heads = _train_heads(fit, scaling, rest, cfg.lr, tried, checkpoint, state)
        tried = _compared(fit, scaling, held, heads)
        state = None
    lr = _best(tried, cfg.lr)
    everything = torch.arange(len(train))
    (head,) = _train_heads(fit, scaling, everything, (lr,), tried, checkpoint, state)
    return Head(*scaling.fold(*head)), lr, tried


def _scaling(fit: _Fit) -> Standardisation:
    if fit.cfg.standardise:
        return measure_standardisation(
            lambda: (fit.stored(shard).to(fit.device) for shard in fit.shards)
        )
    width = int(fit.backbone.feature_dim)  # type: ignore[arg-type]
    ones = torch.ones(width, dtype=torch.float64, device=fit.device)
    return Standardisation(torch.zeros_like(ones), ones)


def _compared(
    fit: _Fit, scaling: Standardisation, held: Tensor, heads: Sequence[Head]
) -> dict[float, float]:
    """Accuracy of the head of each rate on the whole held-out images, in per cent."""
    right = [0 for _ in heads]
    for shard in fit.shards:
        rows = held[(held >= shard.first) & (held < shard.last)]
        x = scaling.of(fit.stored(shard)[rows - shard.first].to(fit.device)).float()
        labels = fit.train.labels[rows].to(fit.device)
        for number, head in enumerate(heads):
            right[number] += int(_right(F.linear(x, *head), labels))
    return {lr: 100 * n / len(held) for lr, n in zip(fit.cfg.lr, right, strict=True)}


def _train_heads(
    fit: _Fit,
    scaling: Standardisation,
    rows: Tensor,
    rates: Sequence[float],
    tried: dict[float, float],
    checkpoint: Checkpoint,
    state: dict[str, Any] | None,
) -> list[Head]:
    """One head for each rate, from zero or from `state`, on the same batches of `rows`."""
    cfg, classes = fit.cfg, len(fit.train.classes)
    zeros = Head(torch.zeros(classes, len(scaling.centre)), torch.zeros(classes))
    start = state["heads"] if state else [zeros for _ in rates]
    heads = [
        Head(*(tensor.to(fit.device, copy=True).requires_grad_() for tensor in head))
        for head in start
    ]
    groups = [
        {"params": [tensor], "weight_decay": decay, "peak": rate}
        for rate, head in zip(rates, heads, strict=True)
        for tensor, decay in ((head.weight, cfg.weight_decay), (head.bias, 0.0))
    ]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=cfg.momentum)
    step, total = 0, cfg.epochs * math.ceil(len(rows) / cfg.batch)
    if state:
        step = state["step"]
        optimizer.load_state_dict(state["optimizer"])
    with Bar("probe", total, step) as bar, evaluating(fit.backbone):
        for x, labels in _batches(fit, scaling, rows, step, total):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * cosine(step / total)
            losses = [F.cross_entropy(F.linear(x, *head), labels) for head in heads]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            step += 1
            bar.advance(note=f"rate {', '.join(f'{rate:g}' for rate in rates)}")
            if checkpoint.due:
                kept = [tuple(tensor.detach() for tensor in head) for head in heads]
                checkpoint.save(
                    {
                        "tried": tried,
                        "step": step,
                        "heads": kept,
                        "optimizer": optimizer.state_dict(),
                    }
                )
    if not any(all(bool(tensor.isfinite().all()) for tensor in head) for head in heads):
        raise RunError(
            "probe: the classifier diverges at every rate of probe.lr (now "
            f"{', '.join(f'{rate:g}' for rate in cfg.lr)}); lower them and run again with --redo "
            "probe"
        )
    return [Head(*(tensor.detach() for tensor in head)) for head in heads]


def _batches(
    fit: _Fit, scaling: Standardisation, rows: Tensor, step: int, total: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features of freshly cropped images and their labels, for every step from `step` on."""
    plan, ahead = tee(_plan(fit, rows, step, total))
    for request, (crops,) in zip(plan, fit.train.crops(ahead), strict=True):
        with torch.no_grad():
            x = scaling.of(_forward(fit.backbone, fit.train, crops, fit.device)).float()
        yield x, fit.train.labels[request.rows].to(fit.device)


def _plan(fit: _Fit, rows: Tensor, step: int, total: int) -> Iterator[Request]:
    cfg, seed, count = fit.cfg, fit.seed, len(rows)
    steps_per_epoch = math.ceil(count / cfg.batch)
    order = torch.empty(0)
    for number in range(step, total):
        epoch, place = divmod(number, steps_per_epoch)
        if place == 0 or number == step:
            order = rows[torch.randperm(count, generator=generator(seed, "probe.order", epoch))]
        batch = order[place * cfg.batch :][: cfg.batch]
        yield _request(cfg, fit.backbone, batch, generator(seed, "probe.sgd", number))


def _request(cfg: ProbeConfig, backbone: nn.Module, rows: Tensor, draw: torch.Generator) -> Request:
    """A random crop of each image."""
    size = int(backbone.image_size)  # type: ignore[arg-type]
    uniforms = torch.rand(4, len(rows), ATTEMPTS, generator=draw)
    flip = chance(len(rows), 0.5 if cfg.flip else 0.0, draw)
    return Request(rows, (CropDraw(size, cfg.crop_scale, uniforms, flip),))


def _forward(
    backbone: nn.Module, source: ImageSource, images: Tensor, device: torch.device
) -> Tensor:
    return backbone(normalise(images.to(device), source.mean, source.std)).float()


def _held_out(cfg: ProbeConfig, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows on which candidates are compared, and the others, on which they are fitted."""
    order = torch.randperm(count, generator=generator(seed, "probe.holdout"))
    held = max(1, round(cfg.holdout * count))
    return order[:held], order[held:]


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    """How many images are classified right; none by a head that has diverged."""
    return ((logits.argmax(dim=1) == labels) & logits.isfinite().all(dim=1)).sum()


def _best(tried: dict[float, float], candidates: Sequence[float]) -> float:
    return max(tried, key=lambda value: tried[value]) if tried else candidates[0]


def _with_head(backbone: nn.Module, given: Head) -> nn.Module:
    about = {name: getattr(backbone, name) for name in ("arch", "image_size", "stem_spec")}
    teacher, head = recreate({**about, "num_classes": len(given.bias)}), backbone.head
    state = copy.copy(backbone.state_dict())
    state[f"{head}.weight"], state[f"{head}.bias"] = given
    teacher.load_state_dict(state)
    return teacher
