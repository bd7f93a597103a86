"""Whole views: drawn from a generator alone, made of any rows of a batch with the same bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from scdd.augment import ViewDraw, colour, draw_views
from scdd.config.views import ViewConfig
from scdd.datasets.sources import Request, ResidentSource
from tests.augment.conftest import SIGNIFICANCE, draw, is_binomial, made, noise, only, view

EVERYTHING = ViewConfig(blur=0.5, solarise=0.2, grey=0.3)
MULTI_CROP = (
    ViewConfig(count=2, crop_scale=(0.4, 1.0), blur=1.0),
    ViewConfig(count=4, size=18, crop_scale=(0.05, 0.4), blur=0.5, solarise=0.2),
)


def tensors(drawn: ViewDraw) -> list[Tensor]:
    return [drawn.crop.uniforms, drawn.crop.flip, *drawn.colour]


def equal(one: tuple[ViewDraw, ...], other: tuple[ViewDraw, ...]) -> bool:
    return all(
        torch.equal(mine, theirs)
        for a, b in zip(one, other, strict=True)
        for mine, theirs in zip(tensors(a), tensors(b), strict=True)
    )


# Drawing


def test_the_same_generator_state_gives_the_same_draws_and_the_next_state_others():
    generator = draw(3)
    state = generator.get_state()
    first = draw_views(MULTI_CROP, 8, 32, generator)
    second = draw_views(MULTI_CROP, 8, 32, generator)
    generator.set_state(state)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        before = torch.get_rng_state()
        assert equal(draw_views(MULTI_CROP, 8, 32, generator), first)
        assert equal(draw_views(MULTI_CROP, 8, 32, generator), second)
        assert torch.equal(torch.get_rng_state(), before)
    assert not equal(first, second)


def test_making_a_view_draws_nothing():
    images, drawn = noise(8, 3, 32, 32), draw_views([EVERYTHING], 8, 32, draw())[0]
    with torch.random.fork_rng():
        before = torch.get_rng_state()
        first = made(images, drawn)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(made(images, drawn), first)


def test_no_two_views_are_drawn_alike():
    drawn = draw_views(MULTI_CROP, 50, 32, draw())
    for field in range(2):
        columns = [tensors(one)[field].flatten() for one in drawn]
        assert len({tuple(column.tolist()) for column in columns}) == 6


def test_every_flip_is_as_likely_as_configured():
    for probability in (0.0, 0.5, 1.0):
        images = noise(2000, 3, 8, 8)
        result = view(images, only(flip=probability))
        mirrored = (result - images.flip(3)).abs().flatten(1).amax(dim=1) < 1e-6
        assert is_binomial(int(mirrored.sum()), 2000, probability)
        torch.testing.assert_close(result[~mirrored], images[~mirrored], atol=1e-6, rtol=0)


# Multi-crop


def test_multi_crop_makes_the_configured_views_in_the_configured_order():
    drawn = draw_views(MULTI_CROP, 10, 32, draw())
    assert [one.crop.size for one in drawn] == [32, 32, 18, 18, 18, 18]
    assert [one.crop.scale for one in drawn] == [(0.4, 1.0)] * 2 + [(0.05, 0.4)] * 4
    images = noise(10, 3, 32, 32)
    assert [made(images, one).shape for one in drawn] == (
        [(10, 3, 32, 32)] * 2 + [(10, 3, 18, 18)] * 4
    )
    turned = draw_views(MULTI_CROP[::-1], 10, 32, draw())
    assert [one.crop.size for one in turned] == [18, 18, 18, 18, 32, 32]


def test_every_kind_of_view_has_the_scale_and_the_chances_of_its_own():
    drawn = draw_views(MULTI_CROP, 1000, 224, draw())
    for one, (low, high) in zip(drawn, [(0.4, 1.0)] * 2 + [(0.05, 0.4)] * 4, strict=True):
        boxes = one.crop.boxes(torch.tensor([[224, 224]]))
        share = (boxes[:, 2] * boxes[:, 3]) / 224**2
        assert low - 0.01 < share.min() < low + 0.05 and high - 0.05 < share.max() < high + 0.01
    small = drawn[2].crop.boxes(torch.tensor([[224, 224]]))
    share = (small[:, 2] * small[:, 3]) / 224**2
    assert stats.kstest(share, stats.uniform(0.05, 0.35).cdf).pvalue > SIGNIFICANCE
    assert all((one.colour.sigma > 0).all() for one in drawn[:2])
    for one in drawn[2:]:
        assert is_binomial(int((one.colour.sigma > 0).sum()), 1000, 0.5)
        assert is_binomial(int(one.colour.solarise.sum()), 1000, 0.2)
    assert not any(one.colour.solarise.any() for one in drawn[:2])


# Rows of a batch


@pytest.fixture(scope="module")
def batch() -> tuple[ResidentSource, tuple[ViewDraw, ...], list[Tensor]]:
    """64 images, the draws of their views, and all the views made at once."""
    images = torch.randint(256, (64, 3, 32, 32), generator=draw(), dtype=torch.uint8)
    labels = torch.zeros(64, dtype=torch.long)
    source = ResidentSource(images, labels, ("a",), (0.0,) * 3, (1.0,) * 3)
    drawn = draw_views(MULTI_CROP, 64, 32, draw(1))
    return source, drawn, made_by(source, drawn, slice(0, 64))


def made_by(source: ResidentSource, drawn: tuple[ViewDraw, ...], rows: slice) -> list[Tensor]:
    """Make rows of the batch as squeeze does: crops from the source, then the colours."""
    own = [one.rows(rows) for one in drawn]
    request = Request(torch.arange(64)[rows], tuple(one.crop for one in own))
    (crops,) = source.crops([request])
    return [colour(crop, one.colour) for crop, one in zip(crops, own, strict=True)]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 63), st.integers(1, 64))
def test_some_rows_of_a_batch_are_made_with_the_same_bits_as_the_whole(batch, first, count):
    source, drawn, whole = batch
    rows = slice(first, min(64, first + count))
    for part, everything in zip(made_by(source, drawn, rows), whole, strict=True):
        assert torch.equal(part, everything[rows])


SINGLE = {
    "crop": {"crop_scale": (0.2, 1.0)},
    "flip": {"flip": 0.5},
    "brightness": {"jitter": 0.8, "brightness": 0.4},
    "contrast": {"jitter": 0.8, "contrast": 0.4},
    "saturation": {"jitter": 0.8, "saturation": 0.4},
    "hue": {"jitter": 0.8, "hue": 0.1},
    "grey": {"grey": 0.5},
    "blur": {"blur": 0.5},
    "solarise": {"solarise": 0.5},
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", SINGLE)
def test_each_operation_gives_a_row_the_same_bits_in_any_company(name, threads):
    torch.set_num_threads(threads)
    images = noise(48, 3, 32, 32)
    drawn = draw_views([only(**SINGLE[name])], 48, 32, draw())[0]
    whole = made(images, drawn)
    assert not torch.equal(whole, images)
    for rows in (slice(0, 24), slice(24, 48), slice(7, 12), *(slice(n, n + 1) for n in range(48))):
        assert torch.equal(made(images[rows], drawn.rows(rows)), whole[rows])


def test_a_large_image_alone_gets_the_bits_it_has_in_a_batch_although_threads_share_it():
    torch.set_num_threads(2)
    images = noise(4, 3, 224, 224)
    drawn = draw_views([ViewConfig(jitter=1.0, blur=1.0, solarise=0.5)], 4, 224, draw())[0]
    whole = made(images, drawn)
    for row in range(4):
        rows = slice(row, row + 1)
        assert torch.equal(made(images[rows], drawn.rows(rows)), whole[rows])


# The view as a whole


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("side", [1, 8, 33])
def test_views_keep_the_shape_and_the_range_of_the_images(count, side):
    strong = ViewConfig(
        crop_scale=(0.05, 1),
        brightness=1.5,
        contrast=1.5,
        saturation=1.5,
        hue=0.5,
        blur=0.5,
        solarise=0.5,
    )
    for images in (noise(count, 3, side, side), noise(count, 3, side, side).round()):
        before = images.clone()
        views = view(images, strong)
        assert views.shape == images.shape and views.dtype == images.dtype
        assert views.isfinite().all()
        assert views.min() >= -1e-5 and views.max() <= 1 + 1e-5
        assert torch.equal(images, before)


def test_two_views_of_one_photograph_differ(photo):
    images = photo.expand(64, -1, -1, -1)
    first, second = (made(images, one) for one in draw_views([ViewConfig(count=2)], 64, 64, draw()))
    difference = (first - second).abs().mean(dim=(1, 2, 3))
    assert difference.mean() > 0.05 and difference.min() > 0.01


def test_every_image_of_a_batch_gets_a_view_of_its_own(photo):
    views = view(photo.expand(64, -1, -1, -1), ViewConfig()).flatten(1)
    apart = torch.cdist(views, views) + 1e3 * torch.eye(64)
    assert apart.min() > 0.5
