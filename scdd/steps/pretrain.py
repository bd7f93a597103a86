"""Step pretrain: pairs to results.json, by pre-training networks and probing their features."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scdd.bilevel.regressor import trunk_of
from scdd.datasets.pixel_statistics import with_statistics
from scdd.distilled import RepresentationDataset
from scdd.files import write_json
from scdd.progress import Bar
from scdd.seeding import generator
from scdd.stages.pretrain import linear_probe, new_network, pretrain
from scdd.steps.context import Context
from scdd.steps.pairs import BASELINE_FILE, FILE, baseline_rows, images_of_backbone

DISTILLED, STORED = "distilled", "distilled, targets stored"
RANDOM, LABELS = "random real", "random real, class labels"
UNTRAINED = "no pre-training"

Learnt = Callable[[], tuple[Tensor, Tensor]]
"""Images [n, 3, S, S] and targets, float [n, d] or classes int64 [n]."""


def run_pretrain(context: Context, step: str) -> tuple[str, ...]:
    """Pairs -> results.json: linear probes of networks that learnt from each arm."""
    cfg, folder = context.cfg.pretrain, context.run.folder(step)
    assert cfg is not None
    arms = _arms(context)
    plan = [(arm, seed) for seed in range(cfg.seeds) for arm in arms]
    mine = context.world.share(plan)
    paths = {row: folder / "rows" / f"{list(arms).index(row[0])}-{row[1]}.json" for row in mine}
    missing = [row for row in mine if not paths[row].exists()]
    with Bar(step, len(mine) * cfg.epochs, (len(mine) - len(missing)) * cfg.epochs) as bar:
        for arm, seed in missing:
            record = _row(context, step, arm, seed, arms[arm], paths[arm, seed], bar)
            context.run.log(step, **record)
            write_json(paths[arm, seed], record)
            context.checkpoint(step, paths[arm, seed].stem).remove()
    context.world.barrier()
    scores = [json.loads(path.read_text()) for path in sorted((folder / "rows").glob("*.json"))]
    if context.world.leads:
        result = {
            "protocol": cfg.model_dump(),
            "val_images": len(context.dataset.val.labels),
            "rows": scores,
        }
        write_json(folder / "results.json", result)
    return ("results.json",)


def _arms(context: Context) -> dict[str, Learnt | None]:
    """What is learnt from in each row; None: nothing."""

    def pairs(step: str, file: str, stored: bool = False) -> Learnt:
        return lambda: _all_views(context, context.run.path / step / file, stored)

    cfg = context.cfg
    assert cfg.pairs_from is not None
    arms: dict[str, Learnt | None] = {DISTILLED: pairs(cfg.pairs_from, FILE)}
    if cfg.condense_pairs is not None and cfg.condense_pairs.approximation:
        arms[STORED] = pairs(cfg.pairs_from, FILE, stored=True)
    arms[RANDOM] = pairs("baseline_pairs", BASELINE_FILE)
    arms[LABELS] = lambda: _labelled(context)
    arms[UNTRAINED] = None
    return arms


def _all_views(context: Context, path: Path, stored: bool) -> tuple[Tensor, Tensor]:
    data = RepresentationDataset.open(path, context.device)
    views = range(data.num_views)
    with torch.no_grad():
        images = torch.cat([data.images(view) for view in views])
        targets = torch.cat([data.parts.targets(view, stored=stored) for view in views])
    return images, targets


def _labelled(context: Context) -> tuple[Tensor, Tensor]:
    """The images of the baseline with their classes."""
    data = RepresentationDataset.open(
        context.run.path / "baseline_pairs" / BASELINE_FILE, context.device
    )
    train = context.dataset.train
    return data.images(0), train.labels[baseline_rows(context)].to(context.device)


def _row(
    context: Context,
    step: str,
    arm: str,
    seed: int,
    learnt: Learnt | None,
    path: Path,
    bar: Bar,
) -> dict[str, Any]:
    """Train one network and probe it; the score is that of the last epoch."""
    cfg, device, classes = context.cfg.pretrain, context.device, len(context.dataset.classes)
    assert cfg is not None
    train = images_of_backbone(context)
    val = with_statistics(context.dataset.val, train.mean, train.std)
    own = generator(context.cfg.seed, "pretrain.network", seed).initial_seed()
    if learnt is None:
        pairs = 0
        net = new_network(cfg.arch, context.dataset.image_size, 1, own).to(device)
        bar.done += cfg.epochs
    else:
        images, targets = learnt()
        pairs = len(images)
        net = pretrain(
            cfg,
            images,
            targets,
            own,
            device,
            context.checkpoint(step, path.stem),
            lambda note: bar.advance(note=f"{arm}, seed {seed}, {note}"),
            classes if arm == LABELS else 0,
        )
    score = linear_probe(cfg.probe, trunk_of(net), train, val, own, device)
    return {"arm": arm, "seed": seed, "pairs": pairs, "top1": score.top1, "top5": score.top5}
