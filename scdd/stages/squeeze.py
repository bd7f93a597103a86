"""Squeeze: pre-train a backbone on the images (SC-DD, section 2.2)."""

from collections.abc import Callable, Iterator
from inspect import signature
from itertools import tee
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scdd.augment import ViewDraw, colour, draw_views, normalise
from scdd.checkpoint import Checkpoint
from scdd.config.squeeze import SqueezeConfig
from scdd.datasets.sources import ImageSource, Request
from scdd.device import uses_bf16
from scdd.distributed import own_rows, rank_and_size
from scdd.divergence import Monitor
from scdd.errors import ConfigError, DataError
from scdd.objectives import Batch, Objective, create_objective
from scdd.probing import features, knn_accuracy
from scdd.progress import Bar
from scdd.seeding import generator, seeded
from scdd.training import clip_each, cosine, make_optimizer, set_lr

Log = Callable[..., None]
Keep = Callable[[int, Objective], None]


def squeeze(
    cfg: SqueezeConfig,
    train: ImageSource,
    val: ImageSource,
    image_size: int,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint,
    log: Log,
    keep: Keep = lambda epoch, objective: None,
    key: str = "squeeze",
) -> Objective:
    """Return the objective, whose backbone is the result, after `cfg.epochs` epochs.

    The validation images serve the kNN monitor alone: nothing is chosen by it. Several processes
    train together: each makes and sees its share of every batch. `keep` is called with every
    number of finished epochs in `cfg.keep_epochs`; `key` is where the
    section stands in the configuration, its first word the step.

    Raises:
        ConfigError: if the processes cannot share a batch.
        DataError: if the training set holds less than one batch, or less than the queue.
        RunError: if the loss stops being finite or the embeddings collapse.
    """
    check_squeeze(cfg, train, key)
    steps_per_epoch = len(train) // cfg.batch
    with seeded(seed, "squeeze.init"):
        objective = create_objective(cfg, image_size, len(train.classes), len(train))
    objective.to(device).train()
    if cfg.compile:
        for network in objective.modules():
            if hasattr(network, "arch"):  # The backbone, and what follows it.
                network.compile()
    optimizer = make_optimizer(objective, cfg, cfg.decay == "all", cfg.vector_lr)
    monitor = Monitor(cfg, key, checkpoint.path, device)
    step = _restore(checkpoint, objective, optimizer, monitor)
    loss_of = _together(objective)
    total = cfg.epochs * steps_per_epoch
    plan, ahead = tee(_plan(cfg, train, image_size, seed, step, total))
    requests = (Request(rows, tuple(draw.crop for draw in draws)) for rows, draws in ahead)
    with Bar(key.partition(".")[0], total, step) as bar:
        for (rows, draws), crops in zip(plan, train.crops(requests), strict=True):
            epoch = step / steps_per_epoch
            factor = cosine(step / total, cfg.warmup_epochs / cfg.epochs)
            set_lr(optimizer, cfg.final_lr + (cfg.lr - cfg.final_lr) * factor)
            batch = Batch(
                views=tuple(
                    normalise(colour(crop.to(device), draw.colour), train.mean, train.std)
                    for crop, draw in zip(crops, draws, strict=True)
                ),
                labels=train.labels[rows].to(device, non_blocking=True),
                rows=rows.to(device, non_blocking=True),
                generator=generator(seed, "squeeze.objective", step),
            )
            objective.on_step_begin(epoch, cfg.epochs)
            with seeded(seed, "squeeze.step", step, rank_and_size()[0]), _arithmetic(cfg, device):
                loss = loss_of(batch)
            optimizer.zero_grad()
            loss.value.backward()
            objective.on_backward_end()
            clip_each(objective, cfg.clip)
            optimizer.step()
            objective.on_step_end()
            monitor.add(*loss)
            step += 1
            done, left = divmod(step, steps_per_epoch)
            bar.advance(note=f"epoch {int(epoch) + 1}/{cfg.epochs}")
            save = checkpoint.due
            if left == 0 or save:
                monitor.check(step, objective)
            if left == 0:
                entry: dict[str, Any] = {"epoch": done, "step": step, **monitor.close()}
                asked = cfg.knn_every and (done % cfg.knn_every == 0 or step == total)
                if asked and rank_and_size()[0] == 0:  # The others wait in the next step.
                    entry["knn_top1"] = _knn_top1(cfg, objective.backbone, train, val, device)
                log(key.partition(".")[0], **entry)
                if done in cfg.keep_epochs:
                    keep(done, objective)
            if save:
                checkpoint.save(_state(step, objective, optimizer, monitor))
                monitor.good = step
    return objective


def check_squeeze(cfg: SqueezeConfig, train: ImageSource, key: str) -> None:
    """Refuse what the images or the processes cannot serve; `key` is as in `squeeze`.

    Raises:
        ConfigError: if the processes cannot share a batch.
        DataError: if the training set holds less than one batch, or less than the queue.
    """
    if len(train) < cfg.batch:
        raise DataError(
            f"{key}.batch is {cfg.batch}, but the training set holds only {len(train)} "
            f"images; choose a batch of at most {len(train)}"
        )
    queue = getattr(cfg.objective, "queue", 0)
    if len(train) < queue:
        raise DataError(
            f"{key}.objective.queue is {queue}, but the training set holds only {len(train)} "
            "images, so that it would hold some twice; choose a shorter queue"
        )
    _, processes = rank_and_size()
    if cfg.batch % processes:
        raise ConfigError(
            f"{key}.batch is {cfg.batch}, which {processes} processes cannot share equally; "
            f"choose a multiple of {processes}"
        )


def _plan(
    cfg: SqueezeConfig, train: ImageSource, image_size: int, seed: int, step: int, total: int
) -> Iterator[tuple[Tensor, tuple[ViewDraw, ...]]]:
    """The rows of this process and its draws, for every step from `step` on.

    All processes draw for the whole batch, so that the views do not depend on their number.
    """
    steps_per_epoch = len(train) // cfg.batch
    own = own_rows(cfg.batch // rank_and_size()[1])
    order = torch.empty(0)
    for number in range(step, total):
        epoch, place = divmod(number, steps_per_epoch)
        if place == 0 or number == step:
            order = torch.randperm(len(train), generator=generator(seed, "squeeze.order", epoch))
        rows = order[place * cfg.batch :][: cfg.batch]
        draw = generator(seed, "squeeze.views", number)
        draws = draw_views(cfg.views, cfg.batch, image_size, draw)
        yield rows[own], tuple(view.rows(own) for view in draws)


def _together(objective: Objective) -> nn.Module:
    """The objective, averaging its gradients over all processes."""
    if rank_and_size()[1] == 1:
        return objective
    # Buffers are the same everywhere already: BatchNorm is synced, queues and centres are gathered.
    # Newer versions of torch have renamed the option, and warn of the old name.
    names = ("forward_sync_buffers", "broadcast_buffers")
    known = signature(DistributedDataParallel).parameters
    option: Any = {next(name for name in names if name in known): False}
    return DistributedDataParallel(objective, **option)


def _arithmetic(cfg: SqueezeConfig, device: torch.device) -> torch.autocast:
    bf16 = uses_bf16(cfg.precision, device)
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def _knn_top1(
    cfg: SqueezeConfig,
    backbone: nn.Module,
    train: ImageSource,
    val: ImageSource,
    device: torch.device,
) -> float:
    """Accuracy on the validation images of their nearest training images."""
    return knn_accuracy(
        features(backbone, train, device),
        train.labels.to(device),
        features(backbone, val, device),
        val.labels.to(device),
        cfg.knn_k,
        cfg.knn_temperature,
    )


def _state(
    step: int, objective: Objective, optimizer: torch.optim.Optimizer, monitor: Monitor
) -> dict[str, Any]:
    return {
        "step": step,
        "objective": objective.state_dict(),
        "optimizer": optimizer.state_dict(),
        "monitor": monitor.sums,
    }


def _restore(
    checkpoint: Checkpoint,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    monitor: Monitor,
) -> int:
    state = checkpoint.load()
    if state is None:
        return 0
    objective.load_state_dict(state["objective"])
    optimizer.load_state_dict(state["optimizer"])
    monitor.sums = state["monitor"].to(monitor.sums.device)
    monitor.good = state["step"]
    return int(state["step"])
