"""Steps relabel, relabel_real and baseline: images to distilled files."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from scdd.checkpoint import load_weights, save_weights
from scdd.distilled import Arrays, DistilledDataset, ViewRecords, codec_of, write_distilled
from scdd.progress import Bar, say
from scdd.stages.relabel import relabel
from scdd.stages.select import random_real
from scdd.steps.context import ARMS, Context, header_of
from scdd.steps.shards import finished, remove_shards
from scdd.tables import size

IMAGES_PER_SHARD = 20_000
LABELS = "labels"
"""Before the names of encoded labels in a shard; parameters of the views have none."""


def run_relabel(context: Context, step: str) -> tuple[str, ...]:
    """teacher + recovered images -> the distilled file."""
    source = "recover_real" if step == "relabel_real" else "recover"
    data = DistilledDataset.open(context.run.path / source / "images.h5")
    file = next(arm.file for arm in ARMS if arm.step == step)
    return _label(context, step, data.images, data.labels, file, context.cfg.method)


def run_baseline(context: Context, step: str) -> tuple[str, ...]:
    """Random real images at the same ipc, labelled by the same teacher in the same way."""
    train = context.dataset.train
    rows = random_real(train, context.cfg.ipc, context.cfg.seed)
    return _label(
        context, step, train.read(rows).cpu(), train.labels[rows], "random_real.h5", "random"
    )


def _label(
    context: Context, step: str, images: Tensor, labels: Tensor, file: str, method: str
) -> tuple[str, ...]:
    """Label stored views shard by shard, then write the distilled file from the shards."""
    cfg = context.cfg.relabel
    teacher, about = context.network("probe", "teacher.safetensors")
    codec = codec_of(cfg, len(about["classes"]))
    bytes_a_label = codec.bytes_a_label if codec is not None else 0
    say(f"  soft labels: {size(bytes_a_label * cfg.views * len(images))} ({cfg.codec})")
    target, shards = context.run.folder(step) / file, context.run.folder(step) / "shards"
    stride = max(1, IMAGES_PER_SHARD // len(images))
    ranges = [(first, min(first + stride, cfg.views)) for first in range(0, cfg.views, stride)]
    mine = context.world.share(ranges)
    with Bar(step, sum(last - first for first, last in mine)) as bar:
        for first, last in mine:
            shard = shards / f"views-{first:05d}.safetensors"
            if not (shard.exists() or target.exists()):
                records, logits = relabel(
                    cfg,
                    teacher,
                    images,
                    about["mean"],
                    about["std"],
                    context.cfg.seed,
                    first,
                    last,
                    context.device,
                )
                encoded = codec.encode(logits) if codec is not None else {}
                tensors = {f"{LABELS}.{name}": values for name, values in encoded.items()}
                about_views = {"ops": records.ops, "padding": records.padding}
                save_weights(shard, tensors | records.parameters, about_views)
            bar.advance(last - first)
    context.world.barrier()
    if context.world.leads and not target.exists():
        header = header_of(context, about, "none" if codec is None else "logits", method)
        write_distilled(target, header, images, labels.int(), _blocks(shards), cfg.views, codec)
    if context.world.leads:
        remove_shards(shards)
    return (file,)


def _blocks(shards: Path) -> Iterator[tuple[ViewRecords, Arrays]]:
    for path in finished(shards):
        tensors, about = load_weights(path)
        names = [name for name in tensors if name.startswith(f"{LABELS}.")]
        encoded = {name.removeprefix(f"{LABELS}."): tensors.pop(name) for name in names}
        yield ViewRecords(tuple(about["ops"]), tensors, about["padding"]), encoded
