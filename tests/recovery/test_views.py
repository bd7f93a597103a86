"""Views of groups: what is drawn for a batch, and what torchvision and torch.roll make of it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from scdd.config.recover import RecoverConfig
from scdd.recovery import View, draw_views, render
from scdd.recovery.views import crop_scale

SIZE = 8


def settings(**changes: Any) -> RecoverConfig:
    return RecoverConfig(**({"crop": "none"} | changes))


def seen(images: Tensor, cfg: RecoverConfig, *seeds: int, done: float = 0.0) -> Tensor:
    """Show G equal shares of the images, one a seed."""
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    return render(images, draw_views(cfg, SIZE, len(images) // len(seeds), done, draws))


def by_torchvision(images: Tensor, view: View, groups: int) -> Tensor:
    """Each image by itself."""
    per_view, out = len(images) // len(view.boxes), []
    assert len(images) % groups == 0
    for number, image in enumerate(images):
        place = number // per_view
        top, left, height, width = view.boxes[place].tolist()
        crop = tv.resized_crop(
            image[None], top, left, height, width, size=[SIZE, SIZE], antialias=True
        )
        crop = tv.hflip(crop) if view.flip[place] else crop
        out.append(torch.roll(crop, view.shift[place].tolist(), dims=(2, 3)))
    return torch.cat(out)


@pytest.mark.parametrize("crop", ["none", "batch", "sample"])
@pytest.mark.parametrize("roll", [0, 3])
@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
def test_every_batch_of_a_group_gets_its_own_crop_flip_and_shift(
    crop: str, roll: int, seeds: Sequence[int]
):
    images = torch.rand(12, 3, SIZE, SIZE)
    cfg = settings(crop=crop, roll=roll)
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    view = draw_views(cfg, SIZE, 12 // len(seeds), 0.0, draws)
    if crop == "none" and roll == 0:
        assert view is None and render(images, view) is images
        return
    assert view is not None
    assert len(view.boxes) == (12 if crop == "sample" else len(seeds))
    truth = by_torchvision(images, view, len(seeds))
    torch.testing.assert_close(render(images, view), truth, rtol=1e-5, atol=1e-5)
    # A batch sees what it would see alone.
    alone = [
        seen(part, cfg, seed) for part, seed in zip(images.chunk(len(seeds)), seeds, strict=True)
    ]
    torch.testing.assert_close(seen(images, cfg, *seeds), torch.cat(alone), rtol=1e-6, atol=1e-6)


def test_a_shift_alone_moves_values_and_changes_none():
    images = torch.rand(4, 3, SIZE, SIZE)
    shown = seen(images, settings(roll=5), 1, 2)
    assert torch.equal(shown.flatten().sort().values, images.flatten().sort().values)


@given(st.integers(1, 7), st.integers(0, 2**31))
def test_a_roll_is_between_nothing_and_its_limit_on_both_axes(roll: int, seed: int):
    marked = torch.zeros(2, 1, SIZE, SIZE)
    marked[:, :, 0, 0] = 1
    places = seen(marked, settings(roll=roll), seed).nonzero()
    assert len(places) == 2 and (places[:, 2:] == places[0, 2:]).all()
    assert (places[:, 2:] <= roll).all()


def test_every_shift_up_to_the_limit_occurs():
    marked = torch.zeros(1, 1, SIZE, SIZE)
    marked[..., 0, 0] = 1
    shifts = {
        tuple(seen(marked, settings(roll=2), seed).nonzero()[0, 2:].tolist()) for seed in range(200)
    }
    assert shifts == {(down, right) for down in range(3) for right in range(3)}


def test_one_box_serves_the_batch_or_each_image_has_its_own():
    images = torch.rand(1, 3, SIZE, SIZE).expand(16, -1, -1, -1)
    for seed in range(3):
        together = seen(images, settings(crop="batch"), seed)
        assert all(torch.equal(image, together[0]) for image in together)
    apart = seen(images, settings(crop="sample"), 1)
    assert len({image.numpy().tobytes() for image in apart}) == 16


def test_without_flip_left_stays_left():
    ramp = torch.arange(float(SIZE)).expand(32, 3, SIZE, SIZE)
    cfg = settings(crop="sample", crop_scale=(0.5, 1.0))
    rising = seen(ramp, cfg.model_copy(update={"flip": False}), 0).diff(dim=3)
    assert (rising >= -1e-5).all()
    mirrored = (seen(ramp, cfg, 0).diff(dim=3).sum(dim=(1, 2, 3)) < 0).double().mean()
    assert 0.2 < mirrored < 0.8


def test_a_curriculum_begins_with_whole_images_and_ends_with_the_published_scale():
    cfg = settings(crop="sample", crop_scale=(0.08, 0.9), crop_curriculum=0.5)
    assert crop_scale(cfg, 0.0) == (1.0, 1.0)
    # Half of a half cosine: (1 + 0.08) / 2.
    assert crop_scale(cfg, 0.25) == (pytest.approx(0.54), 0.9)
    assert crop_scale(cfg, 0.5) == crop_scale(cfg, 0.9) == (0.08, 0.9)
    lows = [crop_scale(cfg, done / 100)[0] for done in range(100)]
    assert lows == sorted(lows, reverse=True)
    assert crop_scale(settings(crop="sample"), 0.0) == (0.08, 1.0)
