"""Steps recover and recover_real: teacher.safetensors to images.h5."""

from functools import partial

import torch
from torch import Tensor

from scdd.checkpoint import load_weights, save_weights
from scdd.config.recover import RecoverConfig
from scdd.distilled import write_distilled
from scdd.progress import Bar
from scdd.stages.recover import batches_of, recover
from scdd.stages.select import random_real
from scdd.steps.context import Context, header_of
from scdd.steps.shards import finished, remove_shards


def run_recover(context: Context, step: str) -> tuple[str, ...]:
    """teacher -> images.h5; `recover_real` starts from random real images, `recover` from noise."""
    cfg, target = context.cfg, context.run.folder(step) / "images.h5"
    shards = context.run.folder(step) / "shards"
    settings = cfg.recover_real if step == "recover_real" else cfg.recover
    assert settings is not None
    teacher, about = context.network("probe", "teacher.safetensors")
    start = _start_images(context, settings)
    batches = batches_of(cfg.ipc, len(about["classes"]), settings.batch, start)
    mine = context.world.share(batches)
    with Bar(step, len(mine) * settings.iterations) as bar:
        for batch in mine:
            shard = shards / f"batch-{batch.index:05d}.safetensors"
            if shard.exists() or target.exists():
                bar.advance(settings.iterations)
                continue
            checkpoint = context.checkpoint(step, f"batch-{batch.index:05d}")
            images = recover(
                settings,
                teacher,
                batch,
                about["image_size"],
                about["mean"],
                about["std"],
                cfg.seed,
                context.device,
                checkpoint,
                lambda note: bar.advance(note=note),
                partial(context.run.log, step),
            )
            save_weights(shard, {"images": images}, {"index": batch.index})
            checkpoint.remove()
    context.world.barrier()
    if context.world.leads and not target.exists():
        images = torch.cat([load_weights(path)[0]["images"] for path in finished(shards)])
        labels = torch.cat([batch.labels for batch in batches])
        write_distilled(target, header_of(context, about, "none"), images, labels.int(), None)
    if context.world.leads:
        remove_shards(shards)
    return ("images.h5",)


def _start_images(context: Context, settings: RecoverConfig) -> Tensor | None:
    """Real images to start from, the same that the baseline uses; None for noise."""
    if settings.start == "noise":
        return None
    train = context.dataset.train
    return train.read(random_real(train, context.cfg.ipc, context.cfg.seed)).cpu()
