"""How many images a run with pairs makes and what they are billed for, before there are any."""

from typing import NamedTuple

from scdd.bilevel.sizes import plan_sizes
from scdd.config.run import RunConfig
from scdd.distilled.bill import Sizes, least_budget
from scdd.errors import ConfigError
from scdd.models import create_model


class PairPlan(NamedTuple):
    """The pairs of a run, and the real images that they are compared with."""

    sizes: Sizes
    budget_n: int
    """N: plain images with a target each, at least as many numbers as the pairs are."""


def plan_pairs(cfg: RunConfig, images: int, classes: int) -> PairPlan:
    """The pairs of a method that makes some; what no step could make is refused.

    Args:
        cfg: of the run.
        images: number of real images.
        classes: of these.

    Raises:
        ConfigError: if the sizes do not fit the images or the budget.
    """
    size = cfg.dataset.image_size
    backbone = create_model(cfg.squeeze.arch, 0, size, cfg.squeeze.stem)
    width = int(backbone.feature_dim)  # type: ignore[arg-type]
    if cfg.condense_pairs is not None:
        sizes = plan_sizes(cfg.condense_pairs, images, size, width)
        return PairPlan(sizes, cfg.condense_pairs.budget_n)
    assert cfg.represent is not None
    views = len(cfg.represent.turns)
    sizes = Sizes(size, width, cfg.ipc * classes, stored_views=views - 1)
    budget_n = least_budget(sizes)
    if budget_n > images:
        turned = f" with {views} targets each" if views > 1 else ""
        raise ConfigError(
            f"ipc is {cfg.ipc}, so that {sizes.pairs} images{turned} take the room of {budget_n} "
            f"real ones with theirs, but the training set holds only {images}; lower ipc"
            + (", or set represent.rotations to false" if views > 1 else "")
        )
    return PairPlan(sizes, budget_n)
