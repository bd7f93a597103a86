"""Real images chosen at random, or as starts of recovery: counts, order, nesting."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scdd.config.recover import RecoverConfig
from scdd.datasets import ResidentSource
from scdd.errors import DataError
from scdd.stages.select import Chosen, choose_start, random_real, read_chosen


def source(labels: list[int], classes: int) -> ResidentSource:
    names = tuple(f"class {i}" for i in range(classes))
    images = torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8)
    return ResidentSource(images, torch.tensor(labels), names, (0.5,) * 3, (0.2,) * 3)


@st.composite
def sources(draw):
    """Shuffled labels with at least three images of each class."""
    classes = draw(st.integers(1, 5))
    labels = [c for c in range(classes) for _ in range(draw(st.integers(3, 8)))]
    return source(draw(st.permutations(labels)), classes)


@given(sources(), st.integers(1, 3), st.integers(0, 2**31))
def test_each_class_gives_its_number_of_different_images_in_rank_major_order(images, ipc, seed):
    rows = random_real(images, ipc, seed)
    classes = len(images.classes)
    assert rows.dtype == torch.int64 and rows.shape == (classes * ipc,)
    assert len(set(rows.tolist())) == len(rows)
    assert images.labels[rows].tolist() == list(range(classes)) * ipc


@given(sources(), st.integers(0, 2**31))
def test_a_smaller_choice_is_the_beginning_of_a_larger_one(images, seed):
    three = random_real(images, 3, seed).tolist()
    for ipc in (1, 2):
        assert random_real(images, ipc, seed).tolist() == three[: ipc * len(images.classes)]


def test_the_seed_decides():
    images = source([i % 2 for i in range(200)], 2)
    assert random_real(images, 5, 0).tolist() == random_real(images, 5, 0).tolist()
    assert random_real(images, 5, 0).tolist() != random_real(images, 5, 1).tolist()


def test_every_image_is_chosen_about_equally_often():
    images = source([0] * 10 + [1] * 10, 2)
    counts = torch.zeros(20)
    for seed in range(400):
        counts[random_real(images, 3, seed)] += 1
    # 400 draws of probability 0.3: mean 120, standard deviation 9.2.
    assert (counts - 120).abs().max() < 5 * 9.2


def test_classes_of_equal_size_are_not_chosen_alike():
    images = source([0] * 50 + [1] * 50, 2)
    rows = random_real(images, 5, 0).view(5, 2)
    assert rows[:, 0].tolist() != (rows[:, 1] - 50).tolist()


def test_too_few_images_of_a_class_are_one_sentence():
    with pytest.raises(DataError) as caught:
        random_real(source([0, 0, 0, 1, 1], 2), 3, 0)
    assert str(caught.value) == (
        "class 'class 1' has 2 training images, but ipc is 3; lower ipc or add images"
    )


def test_a_class_without_images_is_refused_too():
    with pytest.raises(DataError, match="'class 2' has 0 training images"):
        random_real(source([0, 1], 3), 1, 0)


# Starts of recovery

SIZE = 8


class Brightness(nn.Module):
    """Two classes: the logit of the second is how bright an image is, that of the first 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = x.mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(bright), bright], dim=1)


def grey_source(levels: list[int], labels: list[int]) -> ResidentSource:
    """Plain grey images, except for a white right half where the level is odd."""
    images = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, SIZE, SIZE)
    for image, level in zip(images, levels, strict=True):
        if level % 2:
            image[:, :, SIZE // 2 :] = 255
    return ResidentSource(images, torch.tensor(labels), ("dark", "bright"), (0.5,) * 3, (0.2,) * 3)


def chosen(source: ResidentSource, ipc: int, **changes: object) -> Chosen:
    cfg = RecoverConfig(**changes)
    return choose_start(cfg, source, Brightness(), ipc, 0, torch.device("cpu"))


def test_random_starts_are_those_of_the_baseline():
    images = grey_source([0, 20, 40, 200, 220, 240], [0, 0, 0, 1, 1, 1])
    found = chosen(images, 2, start="real")
    assert torch.equal(found.images, random_real(images, 2, 0)) and found.uniforms is None
    rows = torch.tensor([3, 0])
    assert torch.equal(read_chosen(images, found, rows), images.images[found.images[rows]])


def test_the_median_comes_first_and_then_its_neighbours_by_turns():
    # By confidence: the darker, the surer of class 0; the brighter, the surer of class 1.
    levels = [40, 0, 80, 20, 60, 200, 240, 210, 220, 230]
    images = grey_source(levels, [0] * 5 + [1] * 5)
    found = chosen(images, 5, start="median").images.view(5, 2)
    assert [levels[row] for row in found[:, 0]] == [40, 20, 60, 0, 80]
    assert [levels[row] for row in found[:, 1]] == [220, 230, 210, 240, 200]
    assert torch.equal(chosen(images, 2, start="median").images, found[:2].flatten())


def test_the_easiest_crop_of_an_image_counts_and_the_easiest_images_come_first():
    # Half-white images of class 1 have crops brighter than any of the plain ones.
    images = grey_source([10, 30, 50, 100, 101, 120], [0, 0, 0, 1, 1, 1])
    found = chosen(images, 3, start="rded", candidates=10, candidate_crops=20)
    assert found.images.tolist()[0::2] == [0, 1, 2]
    assert found.images.tolist()[1] == 4
    crops = read_chosen(images, found, torch.arange(6))
    assert crops.dtype == torch.uint8 and crops.shape == (6, 3, SIZE, SIZE)
    # The best of twenty crops of the half-white image is white, but for its edge.
    assert crops[1].float().mean() > 230
    # Plain images look the same whatever the crop.
    assert (crops[0] == 10).all() and (crops[2] == 30).all()


def test_of_more_candidates_than_wanted_only_a_random_share_is_looked_at():
    images = grey_source([2 * n for n in range(60)], [0] * 30 + [1] * 30)
    few = chosen(images, 2, start="rded", candidates=4, candidate_crops=1).images
    all_of_them = chosen(images, 2, start="rded", candidates=30, candidate_crops=1).images
    # Crops of plain images are all alike, so the darkest win, if they are looked at.
    assert all_of_them.tolist()[0::2] == [0, 1]
    assert few.tolist()[0::2] != [0, 1]
    assert len(chosen(images, 9, start="rded", candidates=1, candidate_crops=1).images) == 18


@pytest.mark.parametrize("start", ["real", "rded", "median"])
def test_a_class_with_too_few_images_is_refused_whatever_the_start(start: str):
    images = grey_source([0, 20, 200], [0, 0, 1])
    with pytest.raises(DataError, match="'bright' has 1 training images, but ipc is 2"):
        chosen(images, 2, start=start)
