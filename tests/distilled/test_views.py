"""Views: what is sampled, and that replaying equals torchvision image by image."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torchvision.transforms import functional as tv

from scdd.config.relabel import RelabelConfig
from scdd.distilled import ViewRecords, hard_label_weights, render_views, sample_views

SETTINGS = [
    RelabelConfig(crop=crop, flip=flip, mix=mix, padding=3)
    for crop, flip, mix in itertools.product(
        ("none", "resized", "padded"), (False, True), ("none", "mixup", "cutmix")
    )
]


def random_images(count: int, size: int) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, size, size), generator=draw, dtype=torch.uint8)


def shown_alone(images: Tensor, records: ViewRecords, view: int, row: int) -> Tensor:
    """One image by torchvision: crop, flip; no mixing."""
    image = tv.to_tensor(images[row].permute(1, 2, 0).numpy())
    size = image.shape[-1]
    if "crop" in records.ops:
        top, left, height, width = records.parameters["crop"][view, row].tolist()
        pad = records.padding
        image = tv.pad(image, [pad, pad, pad, pad], fill=0.0)
        image = tv.crop(image, top + pad, left + pad, height, width)
        if (height, width) != (size, size):
            image = tv.resize(image, [size, size], antialias=True)
    if "flip" in records.ops and records.parameters["flip"][view, row]:
        image = tv.hflip(image)
    return image


def shown_mixed(images: Tensor, records: ViewRecords, view: int, row: int) -> Tensor:
    own = shown_alone(images, records, view, row)
    if records.mix is None:
        return own
    other = shown_alone(images, records, view, int(records.parameters["partner"][view, row]))
    if records.mix == "mixup":
        share = float(records.parameters["lambda"][view, row])
        return share * own + (1 - share) * other
    top, left, height, width = records.parameters["box"][view, row].tolist()
    own = own.clone()
    own[:, top : top + height, left : left + width] = other[
        :, top : top + height, left : left + width
    ]
    return own


@pytest.mark.parametrize("cfg", SETTINGS, ids=lambda cfg: f"{cfg.crop}-{cfg.flip}-{cfg.mix}")
def test_a_replayed_view_is_what_torchvision_makes_of_each_image(cfg: RelabelConfig):
    images = random_images(7, 12)
    records = sample_views(cfg, 7, 12, seed=3, first=0, last=3)
    index = torch.tensor([5, 0, 3, 6])
    for view in range(3):
        shown = render_views(images, records, view, index)
        wanted = torch.stack([shown_mixed(images, records, view, int(row)) for row in index])
        assert shown.dtype == torch.float32
        torch.testing.assert_close(shown, wanted, atol=2e-6, rtol=0)


def test_a_window_of_the_padded_image_keeps_every_pixel_bit_for_bit():
    images = random_images(20, 10)
    records = sample_views(RelabelConfig(crop="padded", padding=4), 20, 10, 0, 0, 1)
    shown = render_views(images, records, 0, torch.arange(20))
    wanted = torch.stack([shown_alone(images, records, 0, row) for row in range(20)])
    assert torch.equal(shown, wanted)


def test_a_turned_view_is_what_numpy_makes_of_each_image_after_its_crop():
    images = random_images(8, 6)
    plain = sample_views(RelabelConfig(crop="padded", padding=2, mix="mixup"), 8, 6, 0, 0, 1)
    turns = torch.arange(8, dtype=torch.uint8)[None] % 4
    ops = ("crop", "flip", "rot90", "mixup")
    records = ViewRecords(ops, plain.parameters | {"rot90": turns}, plain.padding)
    index = torch.tensor([5, 0, 3, 6, 7, 1])
    unmixed = ViewRecords(("crop", "flip"), plain.parameters, plain.padding)
    every = render_views(images, unmixed, 0, torch.arange(8)).numpy()
    turned = np.stack([np.rot90(one, row % 4, (1, 2)) for row, one in enumerate(every)])
    partner = plain.parameters["partner"][0].numpy()
    share = plain.parameters["lambda"][0].numpy()[:, None, None, None]
    wanted = share * turned + (1 - share) * turned[partner]
    assert np.allclose(render_views(images, records, 0, index), wanted[index], atol=1e-6)


def test_replaying_twice_gives_the_same_bits():
    images = random_images(9, 16)
    records = sample_views(RelabelConfig(mix="cutmix"), 9, 16, 0, 0, 2)
    index = torch.arange(9)
    assert torch.equal(
        render_views(images, records, 1, index), render_views(images, records, 1, index)
    )


def test_autocast_around_it_does_not_round_a_view():
    images, index = random_images(4, 8), torch.arange(4)
    records = sample_views(RelabelConfig(), 4, 8, 0, 0, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = render_views(images, records, 0, index)
    assert torch.equal(inside, render_views(images, records, 0, index))


@given(
    st.sampled_from(SETTINGS),
    st.integers(2, 9),
    st.sampled_from(["running", "batch"]),
    st.integers(0, 2**32),
    st.data(),
)
def test_any_range_of_views_can_be_made_alone(cfg, count, teacher_bn, seed, data):
    cfg = cfg.model_copy(update={"teacher_bn": teacher_bn, "group": 3})
    first = data.draw(st.integers(0, 9))
    last = data.draw(st.integers(first + 1, 10))
    whole = sample_views(cfg, count, 6, seed, 0, 10).slice(first, last)
    alone = sample_views(cfg, count, 6, seed, first, last)
    assert (whole.ops, whole.padding, whole.count()) == (alone.ops, alone.padding, last - first)
    assert whole.parameters.keys() == alone.parameters.keys()
    for name, values in whole.parameters.items():
        assert torch.equal(values, alone.parameters[name])


def test_joined_parts_are_the_whole():
    cfg = RelabelConfig(mix="mixup")
    parts = [sample_views(cfg, 5, 8, 0, *span) for span in ((0, 2), (2, 3), (3, 7))]
    joined, whole = ViewRecords.cat(parts), sample_views(cfg, 5, 8, 0, 0, 7)
    assert all(torch.equal(joined.parameters[n], p) for n, p in whole.parameters.items())
    with pytest.raises(ValueError, match="cannot be joined"):
        ViewRecords.cat([whole, sample_views(RelabelConfig(), 5, 8, 0, 0, 1)])


def test_the_parameters_have_the_types_of_the_format():
    cfg = RelabelConfig(crop="padded", padding=4, mix="cutmix", teacher_bn="batch", group=4)
    records = sample_views(cfg, 10, 32, 0, 0, 3)
    found = {n: (p.dtype, tuple(p.shape)) for n, p in records.parameters.items()}
    assert found == {
        "crop": (torch.int16, (3, 10, 4)),
        "flip": (torch.uint8, (3, 10)),
        "group": (torch.int32, (3, 10)),
        "partner": (torch.int32, (3, 10)),
        "box": (torch.int16, (3, 10, 4)),
    }
    assert records.ops == ("crop", "flip", "cutmix") and records.padding == 4


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 4.0])
def test_mixup_weights_are_drawn_from_the_beta_distribution(alpha: float):
    cfg = RelabelConfig(crop="none", mix="mixup", mix_alpha=alpha)
    weights = sample_views(cfg, 4000, 8, 0, 0, 1).parameters["lambda"][0].double().numpy()
    assert ((weights >= 0) & (weights <= 1)).all()
    assert abs(weights.mean() - 0.5) < 0.03
    assert abs(weights.var() - 1 / (4 * (2 * alpha + 1))) < 0.01
    inner = weights[(weights > 1e-5) & (weights < 1 - 1e-5)]  # float32 rounds the rest to the ends
    truth = stats.beta(alpha, alpha)
    low, high = truth.cdf(1e-5), truth.cdf(1 - 1e-5)
    assert stats.kstest(inner, lambda x: (truth.cdf(x) - low) / (high - low)).pvalue > 1e-3


def test_cutmix_boxes_have_the_side_and_centre_of_the_rule():
    cfg = RelabelConfig(crop="none", flip=False, mix="cutmix")
    box = sample_views(cfg, 20000, 32, 0, 0, 1).parameters["box"][0].double()
    # Closed form: lambda uniform, half = floor(16 sqrt(1 - lambda)), centre uniform in 0 .. 31.
    halves = np.arange(17)
    chance = np.diff(np.minimum((np.arange(18) / 16) ** 2, 1))  # P(half = h) = ((h+1)^2 - h^2)/256
    side = [np.mean([min(c + h, 32) - max(c - h, 0) for c in range(32)]) for h in halves]
    area = [s * s for s in side]  # the two axes have independent centres
    assert abs(float(box[:, 2].mean()) - chance @ side) < 0.15
    assert abs(float((box[:, 2] * box[:, 3]).mean()) - chance @ area) < 6
    assert (box[:, :2] + box[:, 2:] <= 32).all() and (box >= 0).all()


@given(st.integers(2, 60), st.integers(2, 30), st.integers(0, 2**32))
def test_groups_are_nearly_equal_and_partners_stay_inside(count, size, seed):
    cfg = RelabelConfig(mix="mixup", teacher_bn="batch", group=size)
    records = sample_views(cfg, count, 4, seed, 0, 3)
    for group, partner in zip(
        records.parameters["group"], records.parameters["partner"], strict=True
    ):
        sizes = group.bincount()
        assert sizes.min() >= 2 and sizes.max() - sizes.min() <= 1
        assert len(sizes) == min(-(-count // size), count // 2)
        assert torch.equal(group[partner.long()], group)
        assert torch.equal(partner.sort().values, torch.arange(count, dtype=torch.int32))


def test_groups_and_partners_are_new_in_every_view():
    cfg = RelabelConfig(mix="mixup", teacher_bn="batch", group=10)
    records = sample_views(cfg, 50, 4, 0, 0, 2)
    for name in ("group", "partner", "crop"):
        first, second = records.parameters[name]
        assert not torch.equal(first, second)


def test_every_partner_is_equally_likely():
    records = sample_views(RelabelConfig(mix="mixup"), 4, 4, 0, 0, 2000)
    counts = torch.bincount(records.parameters["partner"][:, 0], minlength=4)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_one_image_cannot_be_labelled_by_batch_statistics():
    with pytest.raises(ValueError, match="no batch statistics"):
        sample_views(RelabelConfig(teacher_bn="batch"), 1, 4, 0, 0, 1)


@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
def test_hard_labels_weigh_each_image_by_the_share_it_shows(mix: str):
    cfg = RelabelConfig(crop="none", flip=False, mix=mix)
    records = sample_views(cfg, 6, 10, 0, 0, 1)
    # Image k is the constant k * 40, so the mean of a view tells the share of each of the two.
    images = (torch.arange(6, dtype=torch.uint8) * 40)[:, None, None, None].expand(-1, 3, 10, 10)
    index = torch.tensor([4, 1, 3])
    partner, weight = hard_label_weights(records, 0, index, 10)
    shown = render_views(images, records, 0, index).mean(dim=(1, 2, 3)) * 255 / 40
    torch.testing.assert_close(weight * index + (1 - weight) * partner, shown)
