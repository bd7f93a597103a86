"""Squeeze: pre-train a backbone on the images without their labels (SC-DD, section 2.2)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from scdd.augment import augment, normalise
from scdd.checkpoint import Checkpoint
from scdd.config.squeeze import SqueezeConfig
from scdd.datasets.sources import ImageSource
from scdd.errors import DataError, RunError
from scdd.objectives import create_objective
from scdd.probing import features, knn_accuracy
from scdd.progress import Bar
from scdd.seeding import generator, seeded
from scdd.training import cosine, make_optimizer, set_lr

Log = Callable[..., None]


def squeeze(
    cfg: SqueezeConfig,
    train: ImageSource,
    val: ImageSource,
    image_size: int,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint,
    log: Log,
) -> nn.Module:
    """Return the backbone after `cfg.epochs` epochs of the self-supervised objective.

    The validation images serve the kNN monitor alone: nothing is chosen by it.

    Raises:
        DataError: if the training set holds less than one batch.
        RunError: if the loss stops being finite.
    """
    steps_per_epoch = len(train) // cfg.batch
    if steps_per_epoch == 0:
        raise DataError(
            f"squeeze.batch is {cfg.batch}, but the training set holds only {len(train)} images; "
            f"choose a batch of at most {len(train)}"
        )
    with seeded(seed, "squeeze.init"):
        objective = create_objective(cfg, image_size).to(device).train()
    optimizer = make_optimizer(objective, cfg, decay_all=True)
    running = torch.zeros((), device=device)
    step = _restore(checkpoint, objective, optimizer, running)
    total = cfg.epochs * steps_per_epoch
    with Bar("squeeze", total, step) as bar:
        while step < total:
            epoch, skip = divmod(step, steps_per_epoch)
            order = generator(seed, "squeeze.order", epoch)
            for images, _ in train.epoch(cfg.batch, order, skip=skip):
                set_lr(optimizer, cfg.lr * cosine(step / total, cfg.warmup_epochs / cfg.epochs))
                draw = generator(seed, "squeeze.views", step, device=device)
                x = images.to(device).float() / 255
                view1, view2 = (
                    normalise(augment(x, cfg.augment, draw), train.mean, train.std)
                    for _ in range(2)
                )
                loss = objective(view1, view2, draw)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                running += loss.detach()
                step += 1
                bar.advance(note=f"epoch {epoch + 1}/{cfg.epochs}")
                if checkpoint.due:
                    checkpoint.save(_state(step, objective, optimizer, running))
            _close_epoch(cfg, objective, train, val, epoch, running, step, steps_per_epoch, log)
            running.zero_()
    return objective.backbone  # type: ignore[return-value]


def _close_epoch(
    cfg: SqueezeConfig,
    objective: nn.Module,
    train: ImageSource,
    val: ImageSource,
    epoch: int,
    running: torch.Tensor,
    step: int,
    steps_per_epoch: int,
    log: Log,
) -> None:
    """Check the loss and log it; now and then with the kNN accuracy on the validation images."""
    loss = running.item() / steps_per_epoch
    if not torch.isfinite(running):
        raise RunError(
            f"squeeze: the loss is {loss} in epoch {epoch + 1}; lower squeeze.lr (now {cfg.lr}) "
            "and run again with --redo squeeze"
        )
    entry: dict[str, Any] = {"epoch": epoch + 1, "step": step, "loss": loss}
    if cfg.knn_every and ((epoch + 1) % cfg.knn_every == 0 or epoch + 1 == cfg.epochs):
        device = running.device
        backbone = objective.backbone
        assert isinstance(backbone, nn.Module)
        entry["knn_top1"] = knn_accuracy(
            features(backbone, train, device),
            train.labels.to(device),
            features(backbone, val, device),
            val.labels.to(device),
            cfg.knn_k,
            cfg.knn_temperature,
        )
    log("squeeze", **entry)


def _state(
    step: int, objective: nn.Module, optimizer: torch.optim.Optimizer, running: torch.Tensor
) -> dict[str, Any]:
    return {
        "step": step,
        "objective": objective.state_dict(),
        "optimizer": optimizer.state_dict(),
        "running": running,
    }


def _restore(
    checkpoint: Checkpoint,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    running: torch.Tensor,
) -> int:
    state = checkpoint.load()
    if state is None:
        return 0
    objective.load_state_dict(state["objective"])
    optimizer.load_state_dict(state["optimizer"])
    running.copy_(state["running"])
    return int(state["step"])
