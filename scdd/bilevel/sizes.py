"""How many pairs and bases a budget of N buys: what is asked for, or else the default rule."""

from scdd.config.condense_pairs import CondensePairsConfig
from scdd.distilled.bill import Sizes, budget_floats, most_pairs, storage_floats
from scdd.errors import ConfigError

LARGEST_IMAGE_BASES, LARGEST_TARGET_BASES = 400, 256
LARGEST_BASIS_SIZE = 16
LARGEST_SHARE = 0.75
"""Of the budget, for bases and networks whose sizes are not asked for; the rest is for pairs."""
PAIRS_OF_SMALL_BUDGETS = 256
"""Pairs at most, where 2 N are fewer: beyond, more pairs cost time and bring little."""


def plan_sizes(cfg: CondensePairsConfig, images: int, image_size: int, target_dim: int) -> Sizes:
    """Return sizes whose bill is at most the budget of `cfg.budget_n`.

    Args:
        cfg: the settings.
        images: number of real images.
        image_size: their side in pixels.
        target_dim: length of a target.

    Raises:
        ConfigError: if there are fewer images than N or than pairs, more bases than pixels, target
            entries or images, or the budget is too small for what is asked for.
    """
    if cfg.budget_n > images:
        raise ConfigError(
            f"condense_pairs.budget_n is {cfg.budget_n}, but the training set holds only {images} "
            f"images; choose at most {images}"
        )
    if cfg.parameterisation == "raw":
        sizes = Sizes(image_size, target_dim, cfg.pairs or cfg.budget_n)
    else:
        sizes = _with_bases(cfg, images, image_size, target_dim)
        room = most_pairs(sizes, cfg.budget_n)
        largest = max(2 * cfg.budget_n, PAIRS_OF_SMALL_BUDGETS)
        sizes = sizes._replace(pairs=cfg.pairs or max(1, min(room, largest, images)))
    if sizes.pairs > images:
        raise ConfigError(
            f"condense_pairs.pairs is {sizes.pairs}, but the training set holds only {images} "
            f"images to start from; choose at most {images}"
        )
    _check_bill(cfg, sizes)
    return sizes


def _with_bases(cfg: CondensePairsConfig, images: int, image_size: int, target_dim: int) -> Sizes:
    side = cfg.bases.size or min(LARGEST_BASIS_SIZE, image_size // 2)
    if side > image_size:
        raise ConfigError(
            f"condense_pairs.bases.size is {side}, but an image has {image_size} px; choose at "
            f"most {image_size}"
        )
    turned = len(cfg.turns) - 1
    sizes = Sizes(image_size, target_dim, 0, basis_size=side)
    sizes = (
        sizes._replace(approximations=turned, hidden=cfg.approximate.hidden)
        if cfg.approximation
        else sizes._replace(stored_views=turned)
    )
    vectors = {"values of a basis image": sizes.basis_floats, "real images": images}
    width = {"entries of a target": target_dim, "real images": images}
    _check_asked("condense_pairs.bases.images", cfg.bases.images, vectors)
    _check_asked("condense_pairs.bases.targets", cfg.bases.targets, width)
    budget = budget_floats(cfg.budget_n, image_size, target_dim)
    for count in range(min(2 * cfg.budget_n, LARGEST_IMAGE_BASES), 0, -1):
        sizes = sizes._replace(
            image_bases=cfg.bases.images or min(count, *vectors.values()),
            target_bases=cfg.bases.targets or min(count, LARGEST_TARGET_BASES, *width.values()),
        )
        if sizes.fixed_floats <= LARGEST_SHARE * budget:
            break
    return sizes


def _check_asked(key: str, asked: int | None, limits: dict[str, int]) -> None:
    for what, limit in limits.items():
        if asked is not None and asked > limit:
            raise ConfigError(
                f"{key} is {asked}, more than there are {what} ({limit}), so that not all could be "
                f"orthogonal; choose at most {limit}"
            )


def _check_bill(cfg: CondensePairsConfig, sizes: Sizes) -> None:
    taken, room = storage_floats(sizes), most_pairs(sizes, cfg.budget_n)
    budget = budget_floats(cfg.budget_n, sizes.image_size, sizes.target_dim)
    if taken <= budget:
        return
    if room < 1:
        raise ConfigError(
            f"condense_pairs.budget_n is {cfg.budget_n}, whose {budget} numbers have no room for a "
            f"pair beside {sizes.image_bases} image and {sizes.target_bases} target bases "
            f"({sizes.fixed_floats} numbers); raise it, or lower condense_pairs.bases.images or "
            "condense_pairs.bases.targets"
        )
    raise ConfigError(
        f"condense_pairs.pairs is {sizes.pairs}, which take {taken} numbers, more than the "
        f"{budget} of condense_pairs.budget_n = {cfg.budget_n}; choose at most {room}, or raise "
        "the budget"
    )
