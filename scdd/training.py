"""Parts of a training loop: optimiser, schedule, evaluation. Functions, not a Trainer."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scdd.augment import normalise
from scdd.seeding import generator

SMALL_STEP = 2e9
"""FLOPs of a step below which one thread is faster than two (measured on two cores)."""


SHARE = "share of the rate"
"""Key of a parameter group."""


class OptimizerSettings(Protocol):
    """The fields that squeeze and posttrain share."""

    @property
    def optimizer(self) -> str: ...
    @property
    def lr(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


class Accuracy(NamedTuple):
    """Per cent of images whose class is the first, or among the first five, by logit."""

    top1: float
    top5: float


class Images(Protocol):
    """What evaluation needs of an image source."""

    labels: Tensor
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def read(self, indices: Tensor) -> Tensor: ...


@contextmanager
def fitting_threads(model: nn.Module, images: Tensor, passes: int) -> Iterator[None]:
    """Use one CPU thread where a step is so small that waking the others costs more than it saves.

    Args:
        model: the network.
        images: a batch [B, 3, S, S] as the step will see it; only its shape and device count.
        passes: forward passes that a step is worth; 3 with a backward pass.
    """
    threads = torch.get_num_threads()
    if images.device.type != "cpu" or threads == 1:
        yield
        return
    counter = FlopCounterMode(display=False)
    with evaluating(model), torch.no_grad(), counter:
        model(torch.zeros_like(images[:1]))
    small = counter.get_total_flops() * len(images) * passes < SMALL_STEP
    try:
        torch.set_num_threads(1 if small else threads)
        yield
    finally:
        torch.set_num_threads(threads)


def make_optimizer(
    model: nn.Module, cfg: OptimizerSettings, decay_all: bool, vector_lr: float | None = None
) -> torch.optim.Optimizer:
    """Return SGD, AdamW or LARS; without `decay_all` only tensors of two axes and more decay.

    `vector_lr` is the peak rate of the others, where it is not `cfg.lr`. LARS scales the steps of
    tensors of two axes and more alone (arXiv:1708.03888), with a trust of 0.001.
    """
    decay_all = decay_all and cfg.optimizer != "lars"
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices: dict[str, Any] = {"params": [p for p in trained if p.ndim > 1], SHARE: 1.0}
    vectors: dict[str, Any] = {"params": [p for p in trained if p.ndim < 2], SHARE: 1.0}
    if not decay_all:
        vectors["weight_decay"] = 0.0
    if vector_lr is not None:
        vectors[SHARE] = vector_lr / cfg.lr
    groups = [group for group in (matrices, vectors) if group["params"]]
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay
        )
    if cfg.optimizer == "lars":
        from timm.optim import Lars  # timm takes a second to import

        matrices["always_adapt"] = True  # Without, a weight decay of 0 would switch LARS off.
        return Lars(groups, lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay)
    return torch.optim.AdamW(groups, lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True)


def cosine(done: float, warmup: float = 0.0, stretch: float = 1.0) -> float:
    """Factor of the peak rate after the share `done` in [0, 1) of training.

    Linear from 0 over the share `warmup`, then half a cosine that would end at `stretch` (1: at 0;
    above 1 the rate stays up, the "smoothed" schedule with zeta = stretch).
    """
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (stretch * (1 - warmup))))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group, as its share of `lr`; in place where a tensor holds it."""
    for group in optimizer.param_groups:
        rate = lr * group.get(SHARE, 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def shuffled_batches(
    count: int, batch: int, steps: int, seed: int, purpose: str, first: int = 0
) -> Iterator[Tensor]:
    """Yield rows int64 [batch] of every step from `first` on; each depends on its number alone.

    Epochs over `count` shuffled rows, without those left over at the end of each.
    """
    order = torch.empty(0)
    for step in range(first, steps):
        epoch, place = divmod(step, count // batch)
        if place == 0 or step == first:
            order = torch.randperm(count, generator=generator(seed, purpose, epoch))
        yield order[place * batch :][:batch]


def clip_each(model: nn.Module, largest: float) -> None:
    """Scale the gradient of every parameter tensor to a norm of at most `largest`; 0: leave it."""
    if largest > 0:
        for parameter in model.parameters():
            nn.utils.clip_grad_norm_(parameter, largest)


@torch.no_grad()
def evaluate(model: nn.Module, images: Images, device: torch.device, batch: int = 500) -> Accuracy:
    """Measure accuracy in eval mode on whole images; the model's mode is restored."""
    labels = images.labels.to(device)
    rank = torch.cat(
        [
            _rank(logits, labels[index, None])
            for index, logits in _logits(model, images, device, batch)
        ]
    )
    return Accuracy(
        top1=100 * (rank < 1).double().mean().item(), top5=100 * (rank < 5).double().mean().item()
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put `model` in eval mode for a while."""
    training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(training)


def _rank(logits: Tensor, label: Tensor) -> Tensor:
    """How many classes [B] come before the label [B, 1]; of equal logits the first class does."""
    own = logits.gather(1, label)
    earlier = torch.arange(logits.shape[1], device=logits.device) < label
    before = (logits > own) | ((logits == own) & earlier)
    return before.sum(dim=1) + logits.isnan().any(dim=1) * 10**6


def _logits(
    model: nn.Module, images: Images, device: torch.device, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    with evaluating(model):
        for index in torch.arange(len(images.labels)).split(batch):
            x = images.read(index).to(device).float() / 255
            yield index.to(device), model(normalise(x, images.mean, images.std)).float()
