"""Reading and crops of a resident source."""

from collections.abc import Iterator

import pytest
import torch
import torchvision.transforms.v2.functional as tv

from scdd.augment import CropDraw, draw_views
from scdd.config.views import ViewConfig
from scdd.datasets import ResidentSource
from scdd.datasets.sources import Request


def source(count: int, size: int = 2) -> ResidentSource:
    """Return images whose every pixel is their own number."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, size, size)
    labels = torch.arange(count) % 2
    return ResidentSource(images.contiguous(), labels, ("a", "b"), (0.5,) * 3, (0.2,) * 3)


def noise(count: int, size: int) -> ResidentSource:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, size, size), generator=draw, dtype=torch.uint8)
    return ResidentSource(images, torch.arange(count), tuple("abcdefgh"), (0.5,) * 3, (0.2,) * 3)


def request(rows: list[int], *views: ViewConfig, size: int) -> Request:
    draw = torch.Generator().manual_seed(1)
    draws = draw_views(views, len(rows), size, draw)
    return Request(torch.tensor(rows), tuple(view.crop for view in draws))


def whole(count: int, size: int) -> tuple[CropDraw, ...]:
    """A crop of all of each image."""
    uniforms = torch.full((4, count, 10), 0.5)
    return (CropDraw(size, (1.0, 1.0), uniforms, torch.zeros(count, dtype=torch.bool)),)


def test_crops_are_those_of_torchvision_at_the_drawn_boxes():
    images = noise(8, 24)
    wanted = request([5, 0, 5, 7], ViewConfig(count=2), ViewConfig(size=9, flip=1.0), size=24)
    (found,) = images.crops([wanted])
    assert [crop.shape for crop in found] == [(4, 3, 24, 24)] * 2 + [(4, 3, 9, 9)]
    for crop, made in zip(wanted.crops, found, strict=True):
        boxes = crop.boxes(torch.tensor([[24, 24]])).tolist()
        for row, box, flip, x in zip(wanted.rows, boxes, crop.flip, made, strict=True):
            original = images.images[row].double() / 255
            expected = tv.resized_crop(original, *box, [crop.size] * 2, antialias=True)
            expected = expected.flip(2) if flip else expected
            torch.testing.assert_close(x.double(), expected, rtol=0, atol=1e-5)


def test_a_request_is_taken_when_its_crops_are_wanted_and_answered_in_order():
    taken = []

    def requests() -> Iterator[Request]:
        for number in range(5):
            taken.append(number)
            yield Request(torch.tensor([number, 4 - number]), whole(2, 2))

    for number, (crops,) in enumerate(source(5).crops(requests())):
        assert taken == list(range(number + 1))
        assert torch.equal(
            (crops[:, 0, 0, 0] * 255).round().int().cpu(), torch.tensor([number, 4 - number])
        )
    assert number == 4


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
