"""Step select: real images to images.h5."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scdd.checkpoint import load_weights, save_weights
from scdd.coresets import herding, k_center, most_forgotten
from scdd.datasets.pixel_statistics import with_statistics
from scdd.distilled import write_distilled
from scdd.errors import ConfigError
from scdd.files import scratch
from scdd.probing import features
from scdd.progress import Bar
from scdd.seeding import generator
from scdd.steps.context import Context, check_later_steps, header_of
from scdd.steps.shards import remove_shards

READ_IMAGES = 500
"""Images that are read at a time."""

Choice = Callable[[int, Tensor, int], Tensor]
"""From a pool's number, its rows int64 [N] and a count to positions in it int64 [count]."""


def run_select(context: Context, step: str) -> tuple[str, ...]:
    """real images -> images.h5: as they are, those that stand for their class or for all together.

    Ranks share the pools that are chosen from; what is finished of them outlives any of the ranks.
    """
    check_later_steps(context.cfg, context.dataset)
    cfg, train = context.cfg, context.dataset.train
    folder, classes = context.run.folder(step), len(context.dataset.classes)
    target, shards = folder / "images.h5", folder / "shards"
    assert cfg.select is not None
    if cfg.select.balanced:
        pools = [(train.labels == label).nonzero().squeeze(1).cpu() for label in range(classes)]
    else:
        pools = [torch.arange(len(train))]
    count = cfg.ipc * classes // len(pools)
    paths = [shards / f"pool-{number:05d}.safetensors" for number in range(len(pools))]
    # Listed by all before any goes on, so that all agree on what is left, however many they are.
    left = [n for n, path in enumerate(paths) if not (path.exists() or target.exists())]
    context.world.barrier()
    mine = context.world.share(left)
    choose = _choice(context)
    with Bar(step, len(mine)) as bar:
        for number in mine:
            context.deadline.between()
            rows = pools[number]
            save_weights(paths[number], {"rows": rows[choose(number, rows, count)]}, {})
            bar.advance()
    context.world.barrier()
    if context.world.leads and not target.exists():
        chosen = [load_weights(path)[0]["rows"] for path in paths]
        _write(context, target, torch.stack(chosen, dim=1).flatten())  # Rank-major.
    if context.world.leads:
        remove_shards(shards)
    return ("images.h5",)


def _choice(context: Context) -> Choice:
    """What the method of the run chooses by."""
    cfg = context.cfg
    if cfg.method == "random":
        return lambda number, rows, count: torch.randperm(
            len(rows), generator=generator(cfg.seed, "select.random", number)
        )[:count]
    if cfg.method == "forgetting":
        forgetting, learnt = _forgetting(context)
        return lambda number, rows, count: most_forgotten(
            forgetting[rows], learnt[rows], count, generator(cfg.seed, "select.ties", number)
        )
    greedy = herding if cfg.method == "herding" else k_center
    # Its features are those that the teacher classifies by.
    backbone, about = context.network("squeeze", "backbone.safetensors")
    train = with_statistics(context.dataset.train, about["mean"], about["std"])
    return lambda number, rows, count: greedy(
        features(backbone, train, context.device, rows=rows), count
    )


def _forgetting(context: Context) -> tuple[Tensor, Tensor]:
    """How often each training image was forgotten, int [N], and whether ever learnt, bool [N].

    Raises:
        ConfigError: if there are no counts, or counts of other images.
    """
    step = "squeeze" if context.cfg.scorer is None else "squeeze_scorer"
    path = context.run.path / step / "forgetting.safetensors"
    if not path.exists():
        raise ConfigError(
            f"{path}: is not there, so nothing is known of what was forgotten; make it with "
            f"--redo {step}"
        )
    counts = load_weights(path)[0]
    images = len(context.dataset.train)
    if len(counts["learnt"]) != images:
        raise ConfigError(
            f"{path}: counts what was forgotten of {len(counts['learnt'])} images, but there are "
            f"{images}; make it again with --redo {step}"
        )
    return counts["forgetting"], counts["learnt"]


def _write(context: Context, target: Path, rows: Tensor) -> None:
    """Write the images of some rows; a part at a time is in memory."""
    cfg, train = context.cfg, context.dataset.train
    _, about = load_weights(context.run.path / "probe" / "teacher.safetensors")
    shape = (len(rows), 3, about["image_size"], about["image_size"])
    assert cfg.select is not None
    budget_n = None if cfg.select.balanced else len(rows)
    with scratch(target.with_name("rows"), math.prod(shape)) as file:
        images = np.memmap(file, np.uint8, "r+", shape=shape)
        for first in range(0, len(rows), READ_IMAGES):
            part = rows[first : first + READ_IMAGES]
            images[first : first + len(part)] = train.read(part).cpu().numpy()
        header = header_of(context, about, "none", budget_n=budget_n)
        write_distilled(target, header, images, train.labels[rows].cpu().int(), None)
