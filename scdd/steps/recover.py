"""Steps recover and recover_real: teachers to images.h5."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from scdd.checkpoint import load_weights, save_weights
from scdd.config.recover import RecoverConfig
from scdd.config.section import Triple
from scdd.datasets.pixel_statistics import with_statistics
from scdd.device import uses_bf16
from scdd.distilled import write_distilled
from scdd.files import scratch, write_json
from scdd.progress import Bar, say
from scdd.recovery import RecoveryLoss
from scdd.recovery.plots import draw_trajectories
from scdd.recovery.speed import batches_a_second, compiled, fastest_group, worth_compiling
from scdd.recovery.trajectories import read_trajectories
from scdd.stages.recover import Batch, LossFunction, batches_of, groups_of, recover
from scdd.stages.select import Chosen, choose_start, read_chosen
from scdd.steps.context import Context, header_of
from scdd.steps.shards import finished, remove_shards


class Way(NamedTuple):
    """How a step is computed: decided once, kept in the run directory, the same after a resume."""

    group: int
    compiled: bool


def run_recover(context: Context, step: str) -> tuple[str, ...]:
    """teachers -> images.h5; `recover_real` starts from real images, `recover` as its section says.

    Beside it losses.png shows how it went, a picture and no output that later steps depend on.
    Ranks share the groups of batches; what is finished of them outlives any of the ranks.
    """
    cfg, folder = context.cfg, context.run.folder(step)
    target, shards = folder / "images.h5", folder / "shards"
    settings = cfg.recoveries[step]
    _, about = load_weights(context.run.path / "probe" / "teacher.safetensors")
    teachers, mean, std = _teachers(context, step)
    size, classes = about["image_size"], len(about["classes"])
    batches = batches_of(settings, cfg.ipc, classes, cfg.seed)
    rows = classes * cfg.ipc
    if settings.batch > rows:
        say(f"  {step}.batch is {settings.batch}: all {rows} images are matched together")
    elif rows % settings.batch:
        rest = rows % settings.batch
        say(f"  {step}.batch is {settings.batch}: {rest} of {rows} images are left for the last")
    way = _way(context, step, settings, teachers, batches, size)
    groups = groups_of(batches, way.group)
    chosen = _chosen(context, step, settings)
    # Listed by all before any goes on, so that all agree on what is left, however many they are.
    left = [group for group in groups if not (_shard(shards, group).exists() or target.exists())]
    context.world.barrier()
    mine = context.world.share(left)
    losses: dict[tuple[int, int], list[LossFunction]] = {}
    with Bar(step, len(mine) * settings.iterations) as bar:
        for group in mine:
            shape = (len(group), len(group[0].rows))
            if shape not in losses:
                losses = {shape: _losses(context, settings, teachers, shape, size, way)}
            shard = _shard(shards, group)
            checkpoint = context.checkpoint(step, shard.stem)
            images = recover(
                settings,
                losses[shape],
                _started(context, chosen, group),
                size,
                mean,
                std,
                cfg.seed,
                context.device,
                checkpoint,
                lambda note: bar.advance(note=note),
                partial(context.run.log, step),
            )
            save_weights(shard, {"images": images}, {"batches": [b.index for b in group]})
            checkpoint.remove()
    context.world.barrier()
    if context.world.leads and not target.exists():
        _merge(context, target, shards, batches, about)
    if context.world.leads:
        remove_shards(shards)
        _show_losses(context, step)
    return ("images.h5",)


def _show_losses(context: Context, step: str) -> None:
    """Say and draw what the ranks have logged, if that is still there."""
    found = read_trajectories(context.run.path / "metrics.jsonl", step)
    names = [network.arch for network in context.cfg.teachers_of(step).values()]
    teachers = list(zip(names, found, strict=False))
    for name, trajectories in teachers:
        first, last = trajectories.medians(0), trajectories.medians(-1)
        say(
            f"  {name}: class loss {first[0]:.3g} -> {last[0]:.3g}, matching loss {first[1]:.3g} "
            f"-> {last[1]:.3g}"
        )
    if teachers:
        draw_trajectories(context.run.folder(step) / "losses.png", teachers)


def _shard(shards: Path, group: list[Batch]) -> Path:
    return shards / f"batch-{group[0].index:05d}.safetensors"


def _teachers(context: Context, step: str) -> tuple[list[nn.Module], Triple, Triple]:
    """The networks that take turns, and the mean and std that their pixels have in common."""
    found = [context.network(*names) for names in context.teacher_files(step)]
    _, about = found[0]
    assert all(other["classes"] == about["classes"] for _, other in found)
    return [teacher for teacher, _ in found], about["mean"], about["std"]


def _way(
    context: Context,
    step: str,
    settings: RecoverConfig,
    teachers: list[nn.Module],
    batches: list[Batch],
    size: int,
) -> Way:
    """What an earlier start has decided, else decide."""
    path, device = context.run.folder(step) / "way.json", context.device
    context.world.barrier()
    if context.world.leads and not path.exists():
        # No rank is to go without.
        most = -(-len(batches) // context.world.size)
        group = min(settings.group or 1, most)
        if settings.group is None and device.type == "cuda":
            bf16, count = uses_bf16(settings.precision, device), len(batches[0].rows)
            group = fastest_group(
                lambda g: batches_a_second(settings, teachers, g, count, size, device, bf16), most
            )
        rows = sum(len(batch.rows) for batch in batches)
        whole = worth_compiling(settings, teachers, rows, size, device)
        decided = Way(group, whole)._asdict()
        context.run.log(step, **decided)  # Before the file, so that no loss is logged before it.
        write_json(path, decided)
    context.world.barrier()
    way = Way(**json.loads(path.read_text()))
    most = max(len(group) for group in groups_of(batches, way.group))
    say(f"  batches in one pass: {most} of {len(batches)}")
    return way


def _losses(
    context: Context,
    settings: RecoverConfig,
    teachers: list[nn.Module],
    shape: tuple[int, int],
    size: int,
    way: Way,
) -> list[LossFunction]:
    device, (group, count) = context.device, shape
    bf16 = uses_bf16(settings.precision, device)
    plain = [RecoveryLoss(teacher, settings, group, bf16).to(device) for teacher in teachers]
    return [compiled(loss, count, size, device) if way.compiled else loss for loss in plain]


def _chosen(context: Context, step: str, settings: RecoverConfig) -> Chosen | None:
    """Which real images the rows start from, chosen once, by the teacher of probe; None: noise."""
    if settings.start == "noise":
        return None
    cfg, path = context.cfg, context.run.folder(step) / "start.safetensors"
    if context.world.leads and not path.exists():
        teacher, about = context.network("probe", "teacher.safetensors")
        train = with_statistics(context.dataset.train, about["mean"], about["std"])
        chosen = choose_start(settings, train, teacher, cfg.ipc, cfg.seed, context.device)
        found = {name: tensor for name, tensor in chosen._asdict().items() if tensor is not None}
        save_weights(path, found, {})
    context.world.barrier()
    return Chosen(**load_weights(path)[0])


def _started(context: Context, chosen: Chosen | None, group: list[Batch]) -> list[Batch]:
    """The batches with the real images that they start from, if they do."""
    if chosen is None:
        return group
    train = context.dataset.train
    return [replace(batch, start=read_chosen(train, chosen, batch.rows).cpu()) for batch in group]


def _merge(
    context: Context, target: Path, shards: Path, batches: list[Batch], about: dict[str, Any]
) -> None:
    """Write images.h5 in the order of the rows; one shard at a time is in memory."""
    rows = sum(len(batch.rows) for batch in batches)
    labels = torch.empty(rows, dtype=torch.int32)
    shape = (rows, 3, about["image_size"], about["image_size"])
    with scratch(target.with_name("rows"), math.prod(shape)) as file:
        images = np.memmap(file, np.uint8, "r+", shape=shape)
        for path in finished(shards):
            tensors, of = load_weights(path)
            group = [batches[number] for number in of["batches"]]
            images[torch.cat([batch.rows for batch in group]).numpy()] = tensors["images"].numpy()
        for batch in batches:
            labels[batch.rows] = batch.labels.int()
        write_distilled(target, header_of(context, about, "none"), images, labels, None)
