"""Steps condense_pairs and baseline_pairs: a backbone to images with representations as targets."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scdd.bilevel.pairs import real_pairs, start_rows
from scdd.bilevel.sizes import plan_sizes
from scdd.checkpoint import load_weights
from scdd.datasets import ImageSource
from scdd.datasets.pixel_statistics import with_statistics
from scdd.distilled import Header
from scdd.distilled.bill import describe_bill
from scdd.distilled.pair_writer import write_pairs
from scdd.distilled.pairs import DenseSet, Pairs
from scdd.progress import say
from scdd.run import versions
from scdd.stages.condense_pairs import condense_pairs
from scdd.steps.context import Context, check_later_steps, teacher_record
from scdd.steps.pair_sizes import plan_pairs
from scdd.tables import change

BACKBONE = Path("squeeze", "backbone.safetensors")
FILE, BASELINE_FILE = "distilled.h5", "random_real.h5"


def run_condense_pairs(context: Context, step: str) -> tuple[str, ...]:
    """backbone + real images -> distilled.h5: pairs that a network learns the backbone from.

    Rank 0 does it alone: every outer step needs the one before.
    """
    cfg, folder = context.cfg.condense_pairs, context.run.folder(step)
    assert cfg is not None
    if (folder / FILE).exists():
        return (FILE,)
    check_later_steps(context.cfg, context.dataset)  # Squeeze may have been done before.
    backbone, train = backbone_of(context), images_of_backbone(context)
    size = context.dataset.image_size
    sizes = plan_sizes(cfg, len(train), size, int(backbone.feature_dim))  # type: ignore[arg-type]
    say(f"  {describe_bill(sizes, cfg.budget_n)}")
    made = condense_pairs(
        cfg,
        backbone,
        train,
        size,
        context.cfg.seed,
        context.device,
        context.checkpoint(step),
        partial(context.run.log, step),
    )
    start, end = made.losses
    say(f"  outer loss of new models: {start:.3g} -> {end:.3g} ({change(start, end)})")
    if end > start:
        say("  note: learning has made the pairs worse; lower condense_pairs.lr or take more steps")
    context.run.log(step, judged_start=start, judged_end=end)
    if made.explained:
        shares = ", ".join(f"{share:.2f}" for share in made.explained)
        say(f"  the networks explain of what turning does to targets (R^2): {shares}")
        if min(made.explained) < 0:
            say(
                "  note: their predictions are worse than none; lower condense_pairs.approximate.lr"
            )
        context.run.log(step, explained=made.explained)
    header = pair_header(context, made.pairs, context.cfg.method, cfg.budget_n)
    write_pairs(folder / FILE, header, made.pairs)
    return (FILE,)


def run_baseline_pairs(context: Context, step: str) -> tuple[str, ...]:
    """backbone + real images -> random_real.h5: N random real images with their representations."""
    backbone, train = backbone_of(context), images_of_backbone(context)
    rows = baseline_rows(context)
    parts = real_pairs(backbone, train, rows, context.device)
    header = pair_header(context, parts, "random", len(rows))
    write_pairs(context.run.folder(step) / BASELINE_FILE, header, parts)
    return (BASELINE_FILE,)


def baseline_rows(context: Context) -> Tensor:
    """Rows int64 [N] of the images of the baseline."""
    train, classes = context.dataset.train, len(context.dataset.classes)
    plan = plan_pairs(context.cfg, len(train), classes)
    return start_rows(train, plan.budget_n, context.cfg.seed)


def images_of_backbone(context: Context) -> ImageSource:
    """The training images with the statistics that the backbone knows."""
    _, about = load_weights(context.run.path / BACKBONE)
    return with_statistics(context.dataset.train, about["mean"], about["std"])


def backbone_of(context: Context) -> nn.Module:
    """The frozen backbone, in eval mode."""
    return context.network(*BACKBONE.parts)[0].eval().requires_grad_(False)


def pair_header(context: Context, parts: Pairs, method: str, budget_n: int) -> Header:
    """Header of a file of pairs of the run, whose images came to be by `method`."""
    cfg = context.cfg
    path = context.run.path / BACKBONE
    about: dict[str, Any] = load_weights(path)[1]
    unit = isinstance(parts, DenseSet) and parts.pixels.dtype == torch.uint8
    return Header(
        kind="dense" if isinstance(parts, DenseSet) else "factored",
        target_kind="representation",
        target_dim=parts.target_dim,
        method=method,
        recipe=cfg.recipe,
        dataset=cfg.dataset.name,
        class_names=(),
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
        image_size=parts.image_size,
        image_count=len(parts),
        pixel_space="unit" if unit else "normalized",
        ipc=None,
        budget_n=budget_n,
        seed=cfg.seed,
        config=cfg.model_dump(mode="json"),
        versions=versions(),
        teacher=teacher_record(path, about),
    )
