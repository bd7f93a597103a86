"""Step condense: real images to images.h5."""

from functools import partial

import torch

from scdd.distilled import write_distilled
from scdd.stages.condense import condense
from scdd.stages.select import random_real
from scdd.steps.context import Context, header_of
from scdd.steps.squeeze import check_trainings


def run_condense(context: Context, step: str) -> tuple[str, ...]:
    """real images -> images.h5, as `stages.condense` makes them; no network has to be there.

    Rank 0 does it alone: an iteration is short, and its networks are too small to share.
    """
    cfg, data = context.cfg, context.dataset
    assert cfg.condense is not None
    check_trainings(context)
    start = None
    if cfg.condense.start == "real":
        start = data.train.read(random_real(data.train, cfg.ipc, cfg.seed)).cpu()
    images = condense(
        cfg.condense,
        data.train,
        cfg.ipc,
        data.image_size,
        start,
        cfg.seed,
        context.device,
        context.checkpoint(step),
        partial(context.run.log, step),
    )
    about = {
        "classes": data.classes,
        "mean": data.mean,
        "std": data.std,
        "image_size": data.image_size,
    }
    labels = torch.arange(len(data.classes), dtype=torch.int32).repeat(cfg.ipc)
    header = header_of(context, about, "none", taught=False)
    write_distilled(context.run.folder(step) / "images.h5", header, images, labels, None)
    return ("images.h5",)
