"""The pairs that are learnt: images and targets, raw or as coefficients of bases, in all views."""

from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.augment import normalise
from scdd.bilevel.bases import factorise, orthonormalised
from scdd.bilevel.real_views import BLOCK, representations
from scdd.config.condense_pairs import CondensePairsConfig
from scdd.config.section import Triple
from scdd.datasets.sources import ImageSource
from scdd.distilled.bill import Sizes
from scdd.distilled.factored import FactoredSet, turned
from scdd.distilled.pairs import DenseSet, Pairs
from scdd.seeding import generator

RAW = ("pixels", "vectors")
BASES = ("image_basis", "target_basis")
COEFFICIENTS = ("image_coefficients", "target_coefficients", "view_coefficients")
MEANS = ("image_mean", "target_mean")


def shown(
    pairs: Pairs, views: Iterable[int] | None = None, stored: bool = False
) -> tuple[Tensor, Tensor]:
    """Images [n, 3, S, S] and targets [n, d] of some views, one view after the other; default all.

    With `stored`, targets of turned views are the stored ones where there are predictions too.
    """
    views = list(range(pairs.num_views) if views is None else views)
    images = torch.cat([pairs.images(view) for view in views])
    return images, torch.cat([pairs.targets(view, stored=stored) for view in views])


def learnt(pairs: Pairs) -> dict[str, Tensor]:
    """The tensors that are learnt, by name."""
    names = RAW if isinstance(pairs, DenseSet) else BASES + COEFFICIENTS
    found = {name: getattr(pairs, name) for name in names}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def parts_of(pairs: Pairs) -> dict[str, Tensor]:
    """All tensors by name, with the means, which are not learnt."""
    means = () if isinstance(pairs, DenseSet) else MEANS
    return {name: tensor.detach() for name, tensor in learnt(pairs).items()} | {
        name: getattr(pairs, name) for name in means
    }


def pairs_from(cfg: CondensePairsConfig, image_size: int, parts: dict[str, Tensor]) -> Pairs:
    """The pairs that have these parts, ready to be learnt."""
    pairs: Pairs = (
        DenseSet(cfg.turns, **parts)
        if cfg.parameterisation == "raw"
        else FactoredSet(image_size, cfg.turns, **parts)  # type: ignore[arg-type]
    )
    for tensor in learnt(pairs).values():
        tensor.requires_grad_()
    return pairs


def start_rows(train: ImageSource, count: int, seed: int) -> Tensor:
    """Rows int64 [count] of the different real images that the pairs start from."""
    draw = generator(seed, "condense_pairs.rows")
    return torch.randperm(len(train), generator=draw)[:count]


def real_pairs(
    teacher: nn.Module, train: ImageSource, rows: Tensor, device: torch.device, unit: bool = False
) -> DenseSet:
    """Real images with the teacher's outputs, not learnt; `unit` leaves pixels in [0, 1]."""
    images = _normalised(train, rows, device)
    pixels = train.read(rows).to(device).float() / 255 if unit else images
    return DenseSet((0,), pixels, representations(teacher, images))


def represented(
    teacher: nn.Module,
    pixels: Tensor,
    mean: Triple,
    std: Triple,
    turns: tuple[int, ...],
    device: torch.device,
) -> DenseSet:
    """Images with the teacher's outputs for all their views, on the CPU.

    Args:
        teacher: frozen backbone.
        pixels: uint8 [m, 3, S, S]; they stay as they are.
        mean, std: of the pixels, as the teacher knows them.
        turns: counter-clockwise quarter turns of the views.
        device: where to compute.
    """
    parts = []
    for block in pixels.split(BLOCK):
        images = normalise(block.to(device).float() / 255, mean, std)
        parts.append([representations(teacher, turned(images, turn)).cpu() for turn in turns])
    vectors = torch.stack([torch.cat(view) for view in zip(*parts, strict=True)])
    return DenseSet(turns, pixels, vectors)


def starting_parts(
    cfg: CondensePairsConfig,
    sizes: Sizes,
    teacher: nn.Module,
    train: ImageSource,
    seed: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """The parts of the pairs before any step, from real images and the teacher's outputs."""
    rows = start_rows(train, sizes.pairs, seed)
    if cfg.parameterisation == "raw":
        unit = cfg.start_space == "unit"
        return parts_of(real_pairs(teacher, train, rows, device, unit))
    draw = generator(seed, "condense_pairs.samples")
    samples = torch.randperm(len(train), generator=draw)[: cfg.bases.samples]
    pixels = factorise(
        cfg.bases,
        _small(train, samples, sizes.basis_size, device),
        _small(train, rows, sizes.basis_size, device),
        sizes.image_bases,
        generator(seed, "condense_pairs.image_basis"),
    )
    views = cfg.turns if cfg.bases.pca_views else (0,)
    vectors = factorise(
        cfg.bases,
        _targets(teacher, train, samples, views, device).flatten(0, 1),
        _targets(teacher, train, rows, cfg.turns, device).flatten(0, 1),
        sizes.target_bases,
        generator(seed, "condense_pairs.target_basis"),
    )
    own, *others = vectors.coefficients.split(len(rows))
    parts = {
        "image_mean": pixels.mean,
        "image_basis": pixels.basis,
        "image_coefficients": pixels.coefficients,
        "target_mean": vectors.mean,
        "target_basis": vectors.basis,
        "target_coefficients": own,
    }
    if others:
        parts["view_coefficients"] = torch.stack(others)
    return {name: part.float().contiguous() for name, part in parts.items()}


@torch.no_grad()
def orthonormalise(pairs: FactoredSet) -> None:
    """Make both bases orthonormal in place; the coefficients absorb it, so no pair changes."""
    basis, (coefficients,) = orthonormalised(pairs.image_basis, pairs.image_coefficients)
    pairs.image_basis.copy_(basis)
    pairs.image_coefficients.copy_(coefficients)
    targets = [pairs.target_coefficients]
    if pairs.view_coefficients is not None:
        targets += pairs.view_coefficients.unbind()
    basis, absorbed = orthonormalised(pairs.target_basis, *targets)
    pairs.target_basis.copy_(basis)
    for before, after in zip(targets, absorbed, strict=True):
        before.copy_(after)


def without_gradient(pairs: FactoredSet) -> FactoredSet:
    """The same pairs, no longer learnt."""
    parts = parts_of(pairs)
    return replace(pairs, **parts)  # type: ignore[arg-type]


def _normalised(train: ImageSource, rows: Tensor, device: torch.device) -> Tensor:
    return normalise(train.read(rows).to(device).float() / 255, train.mean, train.std)


def _small(train: ImageSource, rows: Tensor, side: int, device: torch.device) -> Tensor:
    """Normalised images at the size of a basis, [n, 3 * side * side]."""

    def resized(images: Tensor) -> Tensor:
        if images.shape[-1] == side:
            return images
        return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)

    blocks = rows.split(BLOCK)
    return torch.cat([resized(_normalised(train, block, device)).flatten(1) for block in blocks])


def _targets(
    teacher: nn.Module,
    train: ImageSource,
    rows: Tensor,
    turns: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """The teacher's outputs for real images in each of some turns, [V, n, d]."""
    parts = []
    for block in rows.split(BLOCK):
        images = _normalised(train, block, device)
        parts.append([representations(teacher, turned(images, turn)) for turn in turns])
    return torch.stack([torch.cat(view) for view in zip(*parts, strict=True)])
