"""RandAugment as a part of stored views: sampled, kept, replayed, refused."""

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor

from scdd.augment.randaugment import OPERATIONS
from scdd.config.relabel import RandAugmentConfig, RelabelConfig
from scdd.distilled import (
    DistilledDataset,
    DistilledFile,
    ViewRecords,
    record_bytes,
    render_views,
    sample_views,
    verify,
)
from scdd.errors import FormatError
from tests.distilled.test_views import SETTINGS, random_images, shown_alone

TWICE = RandAugmentConfig(count=2, magnitude=9)
NAMES = list(OPERATIONS)
EXACT = {
    "translate_x": (-9, 9),
    "translate_y": (-9, 9),
    "posterise": (1, 8),
    "solarise": (0, 255),
    "equalise": (0, 0),
}
"""Operations that Pillow does bit for bit, and ranges of their parameters."""


def by_pillow(image: Image.Image, name: str, p: int) -> Image.Image:
    if name.startswith("translate"):
        shift = (-p, 0) if name.endswith("x") else (0, -p)
        matrix = (1, 0, shift[0], 0, 1, shift[1])
        return image.transform(image.size, Image.Transform.AFFINE, matrix)
    if name == "posterise":
        return ImageOps.posterize(image, p)
    return ImageOps.solarize(image, p) if name == "solarise" else ImageOps.equalize(image)


def exact_steps(*shape: int) -> Tensor:
    """Draw int16 [*shape, 2] out of the operations that Pillow does bit for bit."""
    draw = np.random.default_rng(0)
    steps = np.zeros((*shape, 2), np.int16)
    for place in np.ndindex(shape):
        name = draw.choice(list(EXACT))
        low, high = EXACT[name]
        steps[place] = NAMES.index(name), draw.integers(low, high + 1)
    return torch.from_numpy(steps)


def shown_augmented(images: Tensor, records: ViewRecords, view: int, row: int) -> Tensor:
    """One image: crop and flip by torchvision, all else by Pillow; no mixing."""
    pixels = (shown_alone(images, records, view, row) * 255).round().to(torch.uint8)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    for number, parameter in records.parameters["randaugment"][view, row].tolist():
        image = by_pillow(image, NAMES[number], parameter)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
def test_a_view_is_cropped_flipped_augmented_and_then_mixed(mix: str):
    images = random_images(11, 20)
    cfg = RelabelConfig(crop="padded", padding=4, randaugment=TWICE, mix=mix)
    records = sample_views(cfg, 11, 20, 0, 0, 2)
    assert records.ops == ("crop", "flip", "randaugment", *([mix] if mix != "none" else []))
    records.parameters["randaugment"] = exact_steps(2, 11, 3)
    every = torch.arange(11)
    for view in range(2):
        own = torch.stack([shown_augmented(images, records, view, row) for row in range(11)])
        found = render_views(images, records, view, every)
        if mix == "none":
            assert torch.equal(found, own)
            continue
        other = own[records.parameters["partner"][view].long()]
        if mix == "mixup":
            share = records.parameters["lambda"][view].view(-1, 1, 1, 1)
            torch.testing.assert_close(found, share * own + (1 - share) * other)
            continue
        for row, (top, left, height, width) in enumerate(records.parameters["box"][view].tolist()):
            inside = slice(top, top + height), slice(left, left + width)
            own[row][:, *inside] = other[row][:, *inside]
        assert torch.equal(found, own)


@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
def test_an_image_shown_alone_has_the_bits_it_has_in_a_batch(mix: str):
    images, every = random_images(30, 32), torch.arange(30)
    records = sample_views(RelabelConfig(randaugment=TWICE, mix=mix), 30, 32, 0, 0, 1)
    together = render_views(images, records, 0, every)
    assert together.dtype == torch.float32 and together.min() >= 0 and together.max() <= 1
    assert torch.equal(render_views(images, records, 0, every), together)
    alone = [render_views(images, records, 0, row[None]) for row in every]
    assert torch.equal(torch.cat(alone), together)


def test_the_crop_is_rounded_to_the_nearest_whole_value():
    images, every = random_images(30, 32), torch.arange(30)
    cfg = RelabelConfig(randaugment=TWICE)
    records = sample_views(cfg, 30, 32, 0, 0, 1)
    records.parameters["randaugment"].zero_()  # the identity
    plain = sample_views(cfg.model_copy(update={"randaugment": None}), 30, 32, 0, 0, 1)
    whole = 255 * render_views(images, records, 0, every)
    assert (whole - whole.round()).abs().max() < 1e-4
    assert (whole - 255 * render_views(images, plain, 0, every)).abs().max() < 0.5 + 1e-4


@given(
    cfg=st.sampled_from(SETTINGS),
    teacher_bn=st.sampled_from(["running", "batch"]),
    steps=st.builds(RandAugmentConfig, count=st.integers(1, 4), magnitude=st.integers(0, 30)),
    seed=st.integers(0, 2**32),
)
def test_the_other_parameters_are_the_same_with_it_and_without(cfg, teacher_bn, steps, seed):
    cfg = cfg.model_copy(update={"teacher_bn": teacher_bn, "group": 3})
    without = sample_views(cfg, 7, 6, seed, 2, 4).parameters
    records = sample_views(cfg.model_copy(update={"randaugment": steps}), 7, 6, seed, 2, 4)
    drawn = records.parameters.pop("randaugment")
    assert drawn.dtype == torch.int16 and drawn.shape == (2, 7, steps.count, 2)
    assert records.parameters.keys() == without.keys()
    for name, values in without.items():
        assert torch.equal(records.parameters[name], values)


def test_it_is_drawn_anew_for_every_image_and_view():
    steps = sample_views(RelabelConfig(randaugment=TWICE), 50, 32, 0, 0, 3)
    flat = steps.parameters["randaugment"].flatten(2)
    assert len({tuple(view.flatten().tolist()) for view in flat}) == 3
    assert len({tuple(image.tolist()) for image in flat[0]}) > 20


def test_a_file_keeps_it_in_four_bytes_an_operation(content, tmp_path: Path):
    made = content(RelabelConfig(randaugment=RandAugmentConfig(count=3)), views=5)
    made.write(tmp_path / "distilled.h5")
    with h5py.File(tmp_path / "distilled.h5") as root:
        stored = root["views/randaugment"]
        assert stored.dtype == np.dtype("<i2") and stored.shape == (5, 6, 3, 2)
        assert np.array_equal(stored[()], made.records.parameters["randaugment"].numpy())
        assert set(root["views"].attrs) == {"ops", "padding"}
    data = DistilledDataset.open(tmp_path / "distilled.h5")
    one = record_bytes(data.records.parameters, 6, steps=3)
    assert one == 6 * 4 * 2 + 1 + 6 * 3 * 4
    assert data.label_bytes == 5 * (6 * 3 * 2 + one)
    every = torch.arange(6)
    assert torch.equal(
        render_views(data.images, data.records, 4, every),
        render_views(made.images, made.records, 4, every),
    )


def test_a_subset_without_its_partners_still_has_it(content, tmp_path: Path):
    content(RelabelConfig(randaugment=TWICE, mix="cutmix"), ipc=4).write(tmp_path / "d.h5")
    part = DistilledDataset.open(tmp_path / "d.h5").subset(2)
    assert not part.has_soft_labels and part.records.ops == ("crop", "flip", "randaugment")
    assert next(part.epoch(0, 6, torch.Generator())).images.shape == (6, 3, 8, 8)


@pytest.mark.parametrize(
    "step", [(14, 0), (-1, 0), (0, 1), (3, 9), (5, 181), (6, -101), (10, 0), (11, 256)]
)
def test_a_file_with_a_senseless_operation_is_refused(content, tmp_path, step: tuple[int, int]):
    path = tmp_path / "distilled.h5"
    content(RelabelConfig(randaugment=TWICE)).write(path)
    with h5py.File(path, "r+") as root:
        root["views/randaugment"][3, 5, 1] = step
    sentence = "view records: randaugment holds a value outside its range"
    assert sentence in verify(path)
    with (
        DistilledFile(path, contents=False) as file,
        pytest.raises(FormatError, match=f"^[^\n]*{sentence}[^\n]*$"),
    ):
        _ = file.views


def test_records_that_cannot_be_are_not_written(content, tmp_path: Path):
    made = content(RelabelConfig(randaugment=TWICE), views=4)
    steps = made.records.parameters["randaugment"]
    for wrong, message in (
        (steps + 100, "outside its range"),
        (torch.zeros(4, 6, 17, 2, dtype=torch.int16), "outside its range"),
        (torch.zeros(4, 6, 0, 2, dtype=torch.int16), "outside its range"),
        (steps[..., 0], "randaugment is torch.int16"),
        (steps.int(), "randaugment is torch.int32"),
    ):
        parameters = made.records.parameters | {"randaugment": wrong}
        records = dataclasses.replace(made.records, parameters=parameters)
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(made, records=records).write(tmp_path / "distilled.h5")
    fewer = content(RelabelConfig(randaugment=RandAugmentConfig(count=1)), views=4)
    blocks = [*made.blocks(2)][:1] + [*fewer.blocks(2)][1:]
    joined = dataclasses.replace(made)
    object.__setattr__(joined, "blocks", lambda block: iter(blocks))
    with pytest.raises(ValueError, match="blocks differ"):
        joined.write(tmp_path / "distilled.h5")
    assert list(tmp_path.iterdir()) == []
