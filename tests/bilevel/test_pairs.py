"""Pairs before any step, what is learnt of them, and bases that are made orthonormal."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scdd.bilevel.pairs import (
    learnt,
    orthonormalise,
    pairs_from,
    parts_of,
    real_pairs,
    shown,
    start_rows,
    starting_parts,
)
from scdd.bilevel.sizes import plan_sizes
from scdd.distilled.bill import storage_floats
from scdd.distilled.factored import FactoredSet, gram_error
from tests.bilevel.tiny_pairs import (
    BASES,
    CPU,
    DIM,
    MEAN,
    RAW,
    SIZE,
    STD,
    settings,
    source,
    teacher,
)


def begin(count: int = 120, seed: int = 0, **changes: Any) -> Any:
    cfg, train = settings(**changes), source(count)
    sizes = plan_sizes(cfg, count, SIZE, DIM)
    return pairs_from(cfg, SIZE, starting_parts(cfg, sizes, teacher(), train, seed, CPU))


def real(count: int, rows: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (source(count).images[rows].float() / 255 - mean) / std


def test_raw_pairs_start_as_real_images_and_what_the_teacher_says_of_them():
    pairs, rows = begin(**RAW), start_rows(source(120), 6, 0)
    assert len(rows.unique()) == 6
    torch.testing.assert_close(pairs.pixels.detach(), real(120, rows))
    torch.testing.assert_close(pairs.targets().detach(), teacher()(real(120, rows)))


def test_as_released_raw_pixels_start_unnormalised_under_the_same_targets():
    pairs, rows = begin(start_space="unit", **RAW), start_rows(source(120), 6, 0)
    assert torch.equal(pairs.pixels.detach(), source(120).images[rows].float() / 255)
    torch.testing.assert_close(pairs.targets().detach(), teacher()(real(120, rows)))


def test_as_many_bases_as_values_give_the_reduced_images_and_the_targets_of_every_view():
    full = {"images": 48, "targets": DIM}
    pairs = begin(budget_n=60, bases=full, approximation=False)
    rows = start_rows(source(120), 6, 0)
    small = F.interpolate(real(120, rows), size=(4, 4), mode="bilinear", antialias=True)
    decoded = pairs.image_mean + pairs.image_coefficients @ pairs.image_basis
    torch.testing.assert_close(decoded.view(6, 3, 4, 4), small, atol=1e-4, rtol=1e-4)
    for view in range(4):
        expected = teacher()(torch.rot90(real(120, rows), view, (2, 3)))
        torch.testing.assert_close(pairs.targets(view), expected, atol=1e-4, rtol=1e-4)
        turned = torch.rot90(pairs.images(0), view, (2, 3))
        torch.testing.assert_close(pairs.images(view), turned)


@pytest.mark.parametrize("changes", [RAW, BASES, {"approximation": False}])
def test_what_is_learnt_is_what_is_paid_for_and_all_of_it_gets_a_gradient(changes: dict):
    pairs = begin(**changes)
    sizes = plan_sizes(settings(**changes), 120, SIZE, DIM)
    assert sum(part.numel() for part in parts_of(pairs).values()) == storage_floats(sizes)
    images, targets = shown(pairs)
    (images.square().sum() + targets.square().sum()).backward()
    for name, tensor in learnt(pairs).items():
        assert tensor.grad is not None and tensor.grad.abs().max() > 0, name


def test_views_are_shown_one_after_the_other():
    pairs = begin()
    images, targets = shown(pairs, (0, 2))
    assert torch.equal(images, torch.cat([pairs.images(0), pairs.images(2)]))
    assert torch.equal(targets, torch.cat([pairs.targets(0), pairs.targets(2)]))
    assert len(shown(pairs)[0]) == 24


def test_orthonormalising_in_place_changes_no_pair():
    pairs = begin(bases={"start": "random_gaussian"})
    with torch.no_grad():
        for tensor in learnt(pairs).values():
            tensor.mul_(1.5).add_(0.01)
        wide = {name: part.double() for name, part in parts_of(pairs).items()}
        pairs = pairs_from(settings(), SIZE, wide)
        before = shown(pairs)
        assert gram_error(pairs.image_basis) > 0.1 and gram_error(pairs.target_basis) > 0.1
        orthonormalise(pairs)
        after = shown(pairs)
    assert gram_error(pairs.image_basis) < 1e-6 and gram_error(pairs.target_basis) < 1e-6
    for one, other in zip(before, after, strict=True):
        assert (one - other).abs().max() < 1e-6


def test_components_of_the_targets_may_see_the_turned_images():
    def error(pca_views: bool) -> float:
        pairs, rows = begin(bases={"pca_views": pca_views}), start_rows(source(120), 6, 0)
        wanted = teacher()(torch.rot90(real(120, rows), 1, (2, 3)))
        return float((pairs.targets(1) - wanted).detach().square().mean())

    assert error(True) < error(False)


def test_only_so_many_images_make_the_bases():
    few, all_of_them = begin(bases={"samples": 30}), begin()
    assert not torch.equal(few.image_mean, all_of_them.image_mean)


def test_the_same_seed_gives_the_same_start():
    first, again, other = (parts_of(begin(seed=seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["image_coefficients"], other["image_coefficients"])


def test_the_means_are_kept_and_not_learnt():
    pairs = begin()
    assert isinstance(pairs, FactoredSet)
    assert not pairs.image_mean.requires_grad and "image_mean" not in learnt(pairs)
    assert "image_mean" in parts_of(pairs) and pairs.image_mean.abs().max() > 0


def test_random_real_pairs_are_what_the_row_random_needs():
    rows = torch.tensor([5, 2])
    pairs = real_pairs(teacher(), source(120), rows, CPU)
    torch.testing.assert_close(pairs.images(), real(120, rows))
    torch.testing.assert_close(pairs.targets(), teacher()(real(120, rows)))
    assert not pairs.images().requires_grad
