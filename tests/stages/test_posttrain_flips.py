"""Views mirrored once more while training, under the labels they have."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scdd.config.posttrain import PosttrainConfig
from scdd.config.relabel import RelabelConfig
from scdd.distilled import Batch, DistilledDataset
from scdd.posttraining import step_batches

MakeDistilled = Callable[..., DistilledDataset]


def batches(data: DistilledDataset, flip: float, epoch: int = 0, skip: int = 0) -> list[Batch]:
    cfg = PosttrainConfig(batch=11, flip=flip)
    order = torch.Generator().manual_seed(epoch)
    return [part for step in step_batches(cfg, data, "soft", epoch, order, skip) for part in step]


def pixels(parts: list[Batch]) -> Tensor:
    return torch.cat([part.images for part in parts])


@pytest.fixture
def data(make_distilled: MakeDistilled) -> DistilledDataset:
    """12 images: with batches of 11, one is left alone and joins the others."""
    return make_distilled(RelabelConfig(views=3, mix="cutmix"))


def test_all_or_no_view_is_mirrored_and_labels_stay(data: DistilledDataset):
    plain, mirrored = batches(data, 0.0), batches(data, 1.0)
    assert torch.equal(pixels(mirrored), pixels(plain).flip(3))
    for name in ("logits", "labels", "partner_labels", "label_weight"):
        for ours, theirs in zip(mirrored, plain, strict=True):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_each_image_is_mirrored_by_itself_with_the_chance_that_is_asked_for(data: DistilledDataset):
    mirrored, groups = 0, set()
    for epoch in range(200):
        plain, some = (pixels(batches(data, flip, epoch)) for flip in (0.0, 0.25))
        same, other = ((some == p).flatten(1).all(1) for p in (plain, plain.flip(3)))
        assert (same | other).all()
        mirrored += int((other & ~same).sum())
        groups.add(tuple(other.tolist()))
    # Binomial: 2,400 x 1/4, within four standard deviations of 21.
    assert abs(mirrored - 600) < 85 and len(groups) > 100


def test_an_epoch_taken_up_in_its_middle_mirrors_the_same_views(make_distilled: MakeDistilled):
    data = make_distilled(RelabelConfig(views=2))
    cfg = PosttrainConfig(batch=4, micro_batches=2, flip=0.5)
    whole, rest = (
        list(step_batches(cfg, data, "hard", 1, torch.Generator().manual_seed(5), skip))
        for skip in (0, 1)
    )
    assert len(rest) == len(whole) - 1 > 0
    for ours, theirs in zip(rest, whole[1:], strict=True):
        assert torch.equal(pixels(ours), pixels(theirs))
