"""Reading and shuffled passes of a resident source."""

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scdd.datasets import ResidentSource

counts, batches = st.integers(1, 40), st.integers(1, 12)
seeds = st.integers(0, 2**31)


def source(count: int, size: int = 2) -> ResidentSource:
    """Return images whose every pixel is their own number."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, size, size)
    labels = torch.arange(count) % 2
    return ResidentSource(images.contiguous(), labels, ("a", "b"), (0.5,) * 3, (0.2,) * 3)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def indices(passed) -> list[list[int]]:
    return [index.tolist() for _, index in passed]


def joined(rows: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(rows))


@given(counts, batches, seeds)
def test_a_pass_without_drop_shows_every_image_once(count, batch, seed):
    shown = indices(source(count).epoch(batch, seeded(seed), drop_last=False))
    assert sorted(joined(shown)) == list(range(count))
    assert all(len(rows) == batch for rows in shown[:-1])


@given(counts, batches, seeds)
def test_dropping_the_last_drops_only_the_incomplete_batch(count, batch, seed):
    if batch > count:
        return
    whole = indices(source(count).epoch(batch, seeded(seed), drop_last=False))
    kept = indices(source(count).epoch(batch, seeded(seed)))
    assert kept == [rows for rows in whole if len(rows) == batch]


@given(counts, batches, seeds, st.integers(0, 50))
def test_a_pass_resumed_in_the_middle_goes_on_identically(count, batch, seed, skip):
    whole = indices(source(count).epoch(batch, seeded(seed), drop_last=False))
    rest = indices(source(count).epoch(batch, seeded(seed), skip, drop_last=False))
    assert rest == whole[skip:]


@given(st.integers(2, 40), batches, batches, seeds)
def test_the_order_depends_on_the_generator_and_not_on_the_batch(count, one, other, seed):
    first = indices(source(count).epoch(one, seeded(seed), drop_last=False))
    second = indices(source(count).epoch(other, seeded(seed), drop_last=False))
    assert joined(first) == joined(second)


def test_a_generator_used_twice_gives_two_orders():
    draw = seeded(0)
    passes = [joined(indices(source(100).epoch(10, draw))) for _ in range(2)]
    assert passes[0] != passes[1]


@given(counts, batches, seeds)
def test_every_image_comes_with_its_own_index(count, batch, seed):
    for images, index in source(count).epoch(batch, seeded(seed), drop_last=False):
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, 2, 2)
        assert index.dtype == torch.int64
        assert (images == index[:, None, None, None]).all()


def test_reading_gives_the_asked_images_in_the_asked_order_with_repeats():
    read = source(9).read(torch.tensor([7, 0, 7]))
    assert read.shape == (3, 3, 2, 2)
    assert read[:, 0, 0, 0].tolist() == [7, 0, 7]


def test_what_was_read_can_be_changed_without_changing_the_source():
    own = source(3)
    own.read(torch.arange(3)).zero_()
    assert own.images[2].max() == 2


def test_reading_at_another_size_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"at 2 px.*cannot give 4 px.*image_size=4"):
        source(3).read(torch.tensor([0]), size=4)
    assert source(3).read(torch.tensor([0]), size=2).shape[-1] == 2


def test_a_batch_larger_than_the_set_is_refused_rather_than_a_pass_of_nothing():
    with pytest.raises(ValueError, match="batch of 8 is more than the 3 images"):
        source(3).epoch(8, seeded(0))
    assert indices(source(3).epoch(8, seeded(0), drop_last=False))[0]


@pytest.mark.parametrize(("batch", "skip"), [(0, 0), (-1, 0), (1, -1)])
def test_senseless_batches_and_skips_are_refused(batch, skip):
    with pytest.raises(ValueError, match="batch must be positive"):
        source(3).epoch(batch, seeded(0), skip)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4).byte(), torch.zeros(2, 3, 4, 5).byte()],
)
def test_only_square_uint8_rgb_images_are_taken(images):
    with pytest.raises(ValueError, match="uint8"):
        ResidentSource(images, torch.zeros(2).long(), ("a",), (0.5,) * 3, (0.2,) * 3)


@pytest.mark.parametrize("labels", [torch.zeros(3).long(), torch.zeros(2)])
def test_labels_must_be_one_integer_an_image(labels):
    with pytest.raises(ValueError, match="labels must be int64"):
        ResidentSource(torch.zeros(2, 3, 4, 4).byte(), labels, ("a",), (0.5,) * 3, (0.2,) * 3)
