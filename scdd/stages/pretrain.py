"""Pretrain: a network learns representations from pairs, and a linear probe says what they bring.

As KRR-ST evaluates (arXiv:2310.06511, section 4): plain regression, then a linear classifier of
real images on features that stay as they are.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.bilevel.regressor import new_regressor
from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.condense_pairs import LinearProbeConfig, PretrainConfig
from scdd.datasets.sources import ImageSource
from scdd.errors import RunError
from scdd.probing import features, fit_linear
from scdd.seeding import generator, seeded
from scdd.training import (
    Accuracy,
    cosine,
    evaluate,
    fitting_threads,
    set_lr,
    shuffled_batches,
)

LINEAR = "linear probe"
"""What such a score is called in every table."""
UNTRAINED = "no pre-training"
"""And a network as it was initialised."""


def new_network(arch: str, image_size: int, target_dim: int, seed: int) -> nn.Sequential:
    """Initialise a network to be pre-trained; as it is, it makes the row "no pre-training"."""
    with seeded(seed, "pretrain.init"):
        return new_regressor(arch, image_size, target_dim)


def pretrain(
    cfg: PretrainConfig,
    images: Tensor,
    targets: Tensor,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    advance: Callable[[str], None] = lambda note: None,
    classes: int = 0,
) -> nn.Sequential:
    """Train a new network by mean squared error on pairs, without augmentation; return it.

    Its `trunk` is what is of use.

    Args:
        cfg: the settings.
        images: [n, 3, S, S], all views, normalised.
        targets: [n, d]; or classes int64 [n], which are learnt by cross-entropy: the comparison
            that takes labels in place of representations.
        seed: decides the weights, the order of the images and dropout.
        device: where to compute.
        checkpoint: the state of the training; at its end that of the trained network.
        advance: called after each epoch with a word on where it stands.
        classes: how many there are, where the targets are classes.

    Raises:
        RunError: if the loss stops being finite.
    """
    images, targets = images.to(device), targets.to(device)
    outputs = classes or targets.shape[1]
    net = new_network(cfg.arch, images.shape[-1], outputs, seed).to(device).train()
    optimizer = torch.optim.SGD(
        net.parameters(), lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay
    )
    parts = {"net": net, "optimizer": optimizer}
    done = checkpoint.restore(parts, "epoch")
    with fitting_threads(net, images[: cfg.batch], passes=3):
        for epoch in range(done, cfg.epochs):
            loss = _epoch(cfg, net, optimizer, images, targets, seed, epoch)
            if not torch.isfinite(loss):
                raise RunError(
                    f"pretrain: the loss of {cfg.arch} is {loss.item()} in epoch {epoch + 1}; "
                    f"lower its learning rate (now {cfg.lr:g})"
                )
            advance(f"{cfg.arch} epoch {epoch + 1}/{cfg.epochs}")
            # At the end too: what follows may take longer, and goes on from here after a kill.
            last = epoch + 1 == cfg.epochs and checkpoint.path is not None
            if checkpoint.due or last:
                checkpoint.save_parts(parts, epoch + 1, "epoch")
    return net.eval()


def _epoch(
    cfg: PretrainConfig,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    seed: int,
    epoch: int,
) -> Tensor:
    """One pass over the shuffled pairs; return the loss [] of the last step."""
    order = torch.randperm(len(images), generator=generator(seed, "pretrain.order", epoch))
    batches = list(order.to(images.device).split(cfg.batch))
    if len(batches) > 1 and len(batches[-1]) == 1:  # BatchNorm has no statistics of one image.
        batches[-2:] = [torch.cat(batches[-2:])]
    loss_of = F.mse_loss if targets.is_floating_point() else F.cross_entropy
    loss = torch.zeros(())
    with seeded(seed, "pretrain.dropout", epoch):
        for rows in batches:
            loss = loss_of(net(images[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return loss.detach()


def linear_probe(
    cfg: LinearProbeConfig,
    trunk: nn.Module,
    train: ImageSource,
    val: ImageSource,
    seed: int,
    device: torch.device,
) -> Accuracy:
    """Accuracy on `val` of a linear classifier fitted on features of the whole images of `train`.

    Features are in eval mode and computed once.

    Raises:
        RunError: if features or classifier are not finite.
    """
    trunk = trunk.to(device).eval()
    known, labels = features(trunk, train, device), train.labels.to(device)
    if not bool(known.isfinite().all()):
        raise RunError(
            "linear probe: the features of the network are no numbers, so its pre-training has "
            "diverged; lower the learning rate of pre-training"
        )
    if cfg.solver == "lbfgs":
        weight, bias = fit_linear(known, labels, len(train.classes), cfg.l2, cfg.iterations)
    else:
        weight, bias = _fit_sgd(cfg, known, labels, len(train.classes), seed)
    if not bool(weight.isfinite().all() and bias.isfinite().all()):
        raise RunError(
            f"linear probe: the classifier by {cfg.solver} is no number; lower the learning rate "
            f"of the probe (now {cfg.lr:g}), or that of pre-training if it is lbfgs"
        )
    classifier = nn.Linear(known.shape[1], len(train.classes), device=device)
    classifier.load_state_dict({"weight": weight, "bias": bias})
    return evaluate(nn.Sequential(trunk, classifier), val, device)


def _fit_sgd(
    cfg: LinearProbeConfig, known: Tensor, labels: Tensor, classes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Weight [C, D] and bias [C] after `cfg.iterations` steps from zero, over shuffled epochs."""
    weight = known.new_zeros(classes, known.shape[1]).requires_grad_()
    bias = known.new_zeros(classes).requires_grad_()
    optimizer = torch.optim.SGD([weight, bias], lr=cfg.lr, momentum=cfg.momentum)
    batch = min(cfg.batch, len(known))
    batches = shuffled_batches(len(known), batch, cfg.iterations, seed, "linear_probe.order")
    for step, rows in enumerate(batches):
        set_lr(optimizer, cfg.lr * cosine(step / cfg.iterations))
        rows = rows.to(known.device)
        loss = F.cross_entropy(F.linear(known[rows], weight, bias), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weight.detach(), bias.detach()
