"""Discrete views of real images, and the table of what the teacher says of them."""

import pytest
import torch
import torch.nn.functional as F

from scdd.bilevel.real_views import (
    count_views,
    real_batches,
    real_images,
    representations,
    teacher_table,
    worth_a_table,
)
from tests.bilevel.tiny_pairs import CPU, MEAN, STD, settings, source, teacher


@pytest.mark.parametrize(("padding", "views"), [(4, 162), (1, 18)])
def test_crops_and_flips_are_few(padding: int, views: int):
    assert count_views(settings(crop_padding=padding)) == views
    assert count_views(settings(crop_padding=padding, outer_aug="flip")) == 2
    assert count_views(settings(crop_padding=padding, outer_aug="none")) == 1


def test_every_view_is_a_shift_of_the_black_padded_image_and_a_flip():
    cfg, train = settings(crop_padding=1), source(1)
    padded = F.pad(train.images.float() / 255, [1, 1, 1, 1])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    expected = {}
    for top in range(3):
        for left in range(3):
            crop = (padded[:, :, top : top + 8, left : left + 8] - mean) / std
            expected[top, left, False], expected[top, left, True] = crop, crop.flip(3)
    views = torch.arange(count_views(cfg))
    found = real_images(cfg, train, torch.zeros_like(views), views, CPU)
    for image in found:
        near = [key for key, crop in expected.items() if torch.allclose(image, crop[0], atol=1e-5)]
        assert len(near) == 1
        del expected[near[0]]
    assert not expected


@pytest.mark.parametrize("outer_aug", ["none", "flip"])
def test_without_crops_the_first_view_is_the_image_as_it_is(outer_aug: str):
    cfg, train = settings(outer_aug=outer_aug), source(4)
    rows = torch.arange(4)
    plain = real_images(settings(outer_aug="none"), train, rows, torch.zeros_like(rows), CPU)
    for view in range(count_views(cfg)):
        found = real_images(cfg, train, rows, torch.full_like(rows, view), CPU)
        torch.testing.assert_close(found, plain.flip(3) if view else plain)


@pytest.mark.parametrize("outer_aug", ["none", "flip", "crop_flip"])
def test_the_table_says_what_the_teacher_says_of_the_very_view(outer_aug: str):
    cfg, train, net = settings(outer_aug=outer_aug), source(40), teacher()
    table = teacher_table(cfg, net, train, CPU)
    assert table.shape == (count_views(cfg), 40, 32)
    with_table = real_batches(cfg, train, net, table, 0, CPU, 0)
    without = real_batches(cfg, train, net, None, 0, CPU, 0)
    for one, other in zip(with_table, without, strict=True):
        assert torch.equal(one.images, other.images)
        torch.testing.assert_close(one.targets, other.targets, atol=1e-5, rtol=1e-4)


def test_batches_of_an_epoch_hold_every_image_once_at_most_in_a_random_view():
    cfg, train = settings(outer_aug="none", steps=3), source(60)
    seen = [batch.images for batch in real_batches(cfg, train, teacher(), None, 0, CPU, 0)]
    assert [len(images) for images in seen] == [16, 16, 16]
    assert len(torch.cat(seen).flatten(1).unique(dim=0)) == 48


def test_a_batch_depends_on_its_step_and_the_seed_alone():
    cfg, train, net = settings(steps=8), source(60), teacher()
    whole = list(real_batches(cfg, train, net, None, 0, CPU, 0))
    for first in range(8):
        rest = list(real_batches(cfg, train, net, None, 0, CPU, first))
        assert len(rest) == 8 - first
        for one, other in zip(rest, whole[first:], strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.targets, other.targets)
    other_seed = next(iter(real_batches(cfg, train, net, None, 1, CPU, 0)))
    assert not torch.equal(other_seed.images, whole[0].images)


def test_a_set_smaller_than_a_batch_is_a_batch():
    (batch,) = real_batches(settings(steps=1), source(5), teacher(), None, 0, CPU, 0)
    assert len(batch.images) == 5


def test_a_table_is_made_where_it_fits_and_saves_work():
    cfg = settings(outer_aug="flip", steps=1000, batch=100)
    assert worth_a_table(cfg, 50_000, 512)
    assert not worth_a_table(cfg, 50_001, 512), "more outputs than the steps need"
    size = 2 * 50_000 * 512 * 4 / 2**30
    assert worth_a_table(cfg.model_copy(update={"cache_gib": size}), 50_000, 512)
    assert not worth_a_table(cfg.model_copy(update={"cache_gib": 0.99 * size}), 50_000, 512)
    assert not worth_a_table(cfg.model_copy(update={"cache_gib": 0.0}), 1, 1)


def test_representations_are_those_in_eval_mode_and_leave_the_mode_alone():
    net = teacher().train()
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = representations(net, x)
    assert net.training and not found.requires_grad
    torch.testing.assert_close(found, net.eval()(x))
