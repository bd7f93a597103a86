"""Judge pairs by networks that took no part in learning them.

The losses of the steps are those of a few models, each of another age, and swing as these grow old
and are replaced. How far the pairs have come is therefore read off models that are trained on the
pairs as they stand: the same initial weights, ages and real images before the first step and after
the last.
"""

import torch
from torch import Tensor, nn

from scdd.augment import normalise
from scdd.bilevel.kernel_regression import regression_loss
from scdd.bilevel.model_pool import OnlineModel
from scdd.bilevel.pairs import Pairs, shown
from scdd.bilevel.passes import Passes
from scdd.bilevel.real_views import RealBatch, representations
from scdd.bilevel.regressor import trunk_of
from scdd.config.condense_pairs import CondensePairsConfig
from scdd.datasets.sources import ImageSource
from scdd.seeding import generator


def judging_batch(
    cfg: CondensePairsConfig,
    teacher: nn.Module,
    source: ImageSource,
    seed: int,
    device: torch.device,
) -> RealBatch:
    """As many real images as a step sees, whole, always the same."""
    order = torch.randperm(len(source), generator=generator(seed, "condense_pairs.judging"))
    pixels = source.read(order[: cfg.batch]).to(device).float() / 255
    images = normalise(pixels, source.mean, source.std)
    return RealBatch(images, representations(teacher, images))


@torch.no_grad()
def judged(
    cfg: CondensePairsConfig,
    pool: list[OnlineModel],
    pairs: Pairs,
    batch: RealBatch,
    passes: Passes,
) -> float:
    """Mean outer loss over a pool that was trained on `pairs`, every view in the support."""
    images, targets = shown(pairs)
    losses: list[Tensor] = []
    for model in pool:
        trunk = trunk_of(model.net.eval().requires_grad_(False))
        support, queries = passes.features(trunk, images), passes.features(trunk, batch.images)
        losses.append(regression_loss(support, targets, queries, batch.targets, cfg.ridge))
    return float(torch.stack(losses).mean())
