"""Steps relabel, relabel_real and baseline: images to distilled files."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scdd.bilevel.pairs import start_rows
from scdd.checkpoint import load_weights, save_weights
from scdd.config.relabel import RelabelConfig
from scdd.distilled import (
    Arrays,
    DistilledFile,
    ViewRecords,
    codec_of,
    label_sizes,
    write_distilled,
)
from scdd.distilled.computed_labels import TEACHER
from scdd.files import link_or_copy, refuse_without_room, scratch
from scdd.progress import Bar, say
from scdd.stages.relabel import relabel
from scdd.stages.select import random_real
from scdd.steps.context import ARMS, Context, header_of
from scdd.steps.pair_sizes import plan_pairs
from scdd.steps.shards import remove_shards
from scdd.tables import size

IMAGES_PER_SHARD = 2_000
"""What a kill loses at most, or a view if that is more."""
IMAGES_IN_MEMORY = 2**30
"""Bytes; more are mapped from a file."""
READ_BYTES = 2**26
"""Bytes of images that are read at a time."""
LABELS = "labels"
"""Before the names of encoded labels in a shard; parameters of the views have none."""

Read = Callable[[int, int], Tensor]
"""From first and last to images first .. last - 1, uint8 [B, 3, S, S]."""


def run_relabel(context: Context, step: str) -> tuple[str, ...]:
    """Networks that label + the method's images -> the distilled file."""
    cfg = context.cfg
    source = "recover_real" if step == "relabel_real" else cfg.images_from
    arm = next(arm for arm in ARMS if arm.step == step)
    with DistilledFile(context.run.path / source / "images.h5") as data:

        def read(first: int, last: int) -> Tensor:
            return data.images(slice(first, last))

        labels, budget_n = data.labels(), data.header.budget_n
        return _label(context, step, read, labels, arm.file, cfg.method, budget_n)


def run_baseline(context: Context, step: str) -> tuple[str, ...]:
    """Random real images, as many as the method has, labelled by the same networks alike."""
    train = context.dataset.train
    rows, budget_n = _random_rows(context)

    def read(first: int, last: int) -> Tensor:
        return train.read(rows[first:last]).cpu()

    labels = train.labels[rows]
    return _label(context, step, read, labels, "random_real.h5", "random", budget_n)


def _random_rows(context: Context) -> tuple[Tensor, int | None]:
    """Rows int64 [N] of random real images, and N where they are not `ipc` of each class.

    Where images have no class they are those that the pairs started from.
    """
    cfg, data = context.cfg, context.dataset
    if cfg.pairs_from is None:
        return random_real(data.train, cfg.ipc, cfg.seed), None
    count = plan_pairs(cfg, len(data.train), len(data.classes)).sizes.pairs
    return start_rows(data.train, count, cfg.seed), count


def _label(
    context: Context,
    step: str,
    read: Read,
    labels: Tensor,
    file: str,
    method: str,
    budget_n: int | None = None,
) -> tuple[str, ...]:
    """Write the distilled file, and beside it the teacher if that is to compute the labels."""
    folder, leads = context.run.folder(step), context.world.leads
    if not (folder / file).exists():
        _make(context, step, read, labels, folder / file, method, budget_n)
    if leads:
        remove_shards(folder / "shards")
    if context.cfg.relabel.codec != "teacher":
        return (file,)
    if leads:
        (names,) = context.teacher_files(step)
        link_or_copy(context.run.path.joinpath(*names), folder / TEACHER)
    return (file, TEACHER)


def _make(
    context: Context,
    step: str,
    read: Read,
    labels: Tensor,
    target: Path,
    method: str,
    budget_n: int | None,
) -> None:
    """Label stored views shard by shard, then write the distilled file from the shards.

    Ranks share the shards; what is finished of them outlives any of the ranks.
    """
    cfg, files = context.cfg.relabel, context.teacher_files(step)
    networks = [context.network(*names) for names in files]
    _, about = networks[0]
    assert all(other["classes"] == about["classes"] for _, other in networks)
    codec = codec_of(cfg, len(about["classes"]))
    shape = (len(labels), 3, about["image_size"], about["image_size"])
    planned = _shards(target.with_name("shards"), cfg.views, len(labels))
    # Listed by all before any goes on, so that all agree on what is left, however many they are.
    left = [shard for shard in planned if not shard.exists()]
    _check_disk(cfg, shape, len(about["classes"]), target.parent, len(left) / len(planned))
    context.world.barrier()
    mine = context.world.share(left)
    with _at_hand(target.with_name("pixels"), shape, read) as images:
        made = relabel(
            cfg,
            [network for network, _ in networks],
            images,
            about["mean"],
            about["std"],
            context.cfg.seed,
            chain.from_iterable(planned[shard] for shard in mine),
            context.device,
            codec.encode if codec is not None and codec.layout else None,
        )
        with Bar(step, sum(len(planned[shard]) for shard in mine)) as bar, closing(made):
            for shard in mine:
                context.deadline.between()
                blocks = []
                for block in islice(made, len(planned[shard])):
                    blocks.append(block)
                    bar.advance()
                _save(shard, blocks)
        context.world.barrier()
        if context.world.leads:
            labellers = files if cfg.teachers != "teacher" else []
            paths = [context.run.path.joinpath(*names) for names in labellers]
            kind = "none" if codec is None else "logits"
            header = header_of(context, about, kind, method, paths, budget_n)
            stored = _blocks(planned)
            write_distilled(target, header, images, labels.int(), stored, cfg.views, codec)


def _shards(folder: Path, views: int, count: int) -> dict[Path, range]:
    """The files of all shards, in order, and their views of `count` images."""
    stride = max(1, IMAGES_PER_SHARD // count)
    parts = [range(first, min(first + stride, views)) for first in range(0, views, stride)]
    return {folder / f"views-{p.start:06d}-{p.stop - 1:06d}.safetensors": p for p in parts}


def _check_disk(
    cfg: RelabelConfig, shape: Sequence[int], classes: int, folder: Path, left: float
) -> None:
    """Say how much labels take, and refuse to begin if the share `left` of them has no room."""
    sizes, pixels = label_sizes(cfg, shape[0], shape[-1], classes), math.prod(shape)
    images = pixels * (2 if pixels > IMAGES_IN_MEMORY else 1)
    most = sizes.labels + sizes.views + sizes.shards + images
    say(
        f"  soft labels: {size(sizes.labels)} ({cfg.codec}), views: {size(sizes.views)}; "
        f"{size(most)} of disk until the step is done"
    )
    there = round((1 - left) * sizes.shards)
    remedy = "lower relabel.views or choose another relabel.codec"
    refuse_without_room(folder, most - there, remedy)


@contextmanager
def _at_hand(near: Path, shape: tuple[int, ...], read: Read) -> Iterator[Tensor]:
    """All images, uint8 [N, 3, S, S], read piece by piece; where they are many, out of memory."""
    each = math.prod(shape[1:])
    many = shape[0] * each > IMAGES_IN_MEMORY
    with scratch(near, shape[0] * each) if many else nullcontext() as file:
        pixels = np.memmap(file, np.uint8, "r+", shape=shape) if file else np.empty(shape, np.uint8)
        step = max(1, READ_BYTES // each)
        for first in range(0, shape[0], step):
            last = min(first + step, shape[0])
            pixels[first:last] = read(first, last).numpy()
        yield torch.from_numpy(pixels)


def _save(shard: Path, blocks: Sequence[tuple[ViewRecords, Arrays]]) -> None:
    """Write the views of a shard."""
    records = ViewRecords.cat([records for records, _ in blocks])
    several = len(blocks) > 1  # One view alone may be as large as all else, so it is not copied.
    tensors = {
        f"{LABELS}.{name}": torch.cat([kept[name] for _, kept in blocks]) if several else values
        for name, values in blocks[0][1].items()
    }
    about = {"ops": records.ops, "padding": records.padding}
    save_weights(shard, tensors | records.parameters, about)


def _blocks(shards: Iterable[Path]) -> Iterator[tuple[ViewRecords, Arrays]]:
    for path in shards:
        tensors, about = load_weights(path)
        names = [name for name in tensors if name.startswith(f"{LABELS}.")]
        encoded = {name.removeprefix(f"{LABELS}."): tensors.pop(name) for name in names}
        yield ViewRecords(tuple(about["ops"]), tensors, about["padding"]), encoded
