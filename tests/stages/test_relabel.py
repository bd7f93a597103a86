"""Soft labels: the teacher's own answers on what is shown, in eval mode or by groups."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.config.relabel import RelabelConfig
from scdd.distilled import ViewRecords, make_codec, render_views
from scdd.errors import RunError
from scdd.stages.relabel import relabel
from tests.stages.conftest import CPU, MEAN, STD, labelled, random_images

MakeTeacher = Callable[..., nn.Module]

CONFIGS: dict[str, dict[str, Any]] = {
    "resized": {"crop": "resized"},
    "padded and mixed": {"crop": "padded", "padding": 2, "mix": "mixup"},
    "cut and pasted": {"crop": "resized", "mix": "cutmix"},
    "plain": {"crop": "none", "flip": False},
    "grouped": {"crop": "resized", "teacher_bn": "batch", "group": 4},
    "grouped and mixed": {"crop": "padded", "mix": "mixup", "teacher_bn": "batch", "group": 5},
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def settings(**changes: Any) -> RelabelConfig:
    return RelabelConfig(**({"views": 4} | changes))


def label(cfg: RelabelConfig, teacher: nn.Module, images: Tensor, **how: Any) -> Any:
    return labelled(cfg, [teacher], images, **how)


def shown(images: Tensor, records: ViewRecords, view: int) -> Tensor:
    """Normalised pixels of one view of all images."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (render_views(images, records, view, torch.arange(len(images))) - mean) / std


def group_by_group(teacher: nn.Module, images: Tensor, records: ViewRecords, view: int) -> Tensor:
    """What the teacher says, as a plain loop: in train mode for each group, but for dropout."""
    pixels = shown(images, records, view)
    if "group" not in records.parameters:
        return copy.deepcopy(teacher).eval()(pixels)
    logits = []
    order = []
    for number in records.parameters["group"][view].unique():
        members = (records.parameters["group"][view] == number).nonzero().squeeze(1)
        reference = copy.deepcopy(
            teacher
        ).train()  # Its statistics move, so each group has its own.
        for module in reference.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        logits.append(reference(pixels[members]))
        order.append(members)
    return torch.cat(logits)[torch.cat(order).argsort()]


@configs
@pytest.mark.parametrize("arch", ["resnet8", "mobilenet_v3_large"])
def test_labels_are_the_answers_to_the_pixels_that_a_student_will_see(
    config: dict[str, Any], arch: str, make_teacher: MakeTeacher
):
    cfg, teacher, images = settings(**config), make_teacher(arch), random_images(13)
    records, logits = label(cfg, teacher, images)
    assert logits.shape == (4, 13, 4) and logits.dtype == torch.float32
    assert records.count() == 4 and ("group" in records.parameters) is (cfg.teacher_bn == "batch")
    for view in range(4):
        truth = group_by_group(teacher, images, records, view)
        # Of groups of three images at 8 px, the last layers know three numbers a channel.
        off = (logits[view] - truth).abs().max() / (truth.max() - truth.min())
        assert off < 1e-5


@pytest.mark.parametrize("batch", [1, 8, 500])
@pytest.mark.parametrize(("count", "group"), [(12, 4), (13, 4), (11, 6), (9, 20), (5, 2)])
def test_groups_that_share_a_pass_get_the_labels_each_would_get_alone(
    count: int, group: int, batch: int, make_teacher: MakeTeacher
):
    teacher, images = make_teacher("resnet8", 16), random_images(count, 16)
    cfg = settings(views=2, teacher_bn="batch", group=group, mix="cutmix")
    records, logits = label(cfg, teacher, images, batch=batch)
    for view in range(2):
        truth = group_by_group(teacher, images, records, view)
        assert (logits[view] - truth).abs().max() / (truth.max() - truth.min()) < 1e-5


@pytest.mark.parametrize("grouped", [False, True])
def test_the_labels_of_several_are_the_mean_of_their_logits(
    grouped: bool, make_teacher: MakeTeacher
):
    teachers, images = (
        [make_teacher(arch) for arch in ("resnet8", "vgg11", "vit_tiny")],
        (random_images(9)),
    )
    cfg = settings(mix="mixup", **({"teacher_bn": "batch", "group": 4} if grouped else {}))
    _, together = labelled(cfg, teachers, images)
    alone = [label(cfg, teacher, images)[1].numpy().astype(float) for teacher in teachers]
    np.testing.assert_allclose(together.numpy(), np.mean(alone, axis=0), rtol=0, atol=1e-5)


def test_group_statistics_are_those_of_batch_norm_in_training(make_teacher: MakeTeacher):
    class OneNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3).eval()

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x)[:, :, ::2, ::4].flatten(1)

    teacher, images = OneNorm(), random_images(9)
    teacher.get_buffer("norm.running_mean").fill_(5)
    cfg = settings(crop="resized", teacher_bn="batch", group=3)
    records, logits = label(cfg, teacher, images)
    for view in range(4):
        pixels = shown(images, records, view)
        for number in range(3):
            members = records.parameters["group"][view] == number
            assert int(members.sum()) == 3
            norm = F.batch_norm(pixels[members], None, None, training=True)
            truth = norm[:, :, ::2, ::4].flatten(1)
            torch.testing.assert_close(logits[view, members], truth, rtol=1e-4, atol=1e-4)


@configs
def test_every_buffer_of_the_teacher_is_bit_equal_afterwards(
    config: dict[str, Any], make_teacher: MakeTeacher
):
    teacher = make_teacher()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    label(settings(**config), teacher, random_images(9))
    assert teacher.state_dict().keys() == before.keys()
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_buffers_come_back_after_an_error_too(make_teacher: MakeTeacher):
    class Broken(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            self.net(x)
            raise KeyboardInterrupt

    teacher = Broken(make_teacher())
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        label(settings(teacher_bn="batch", group=4), teacher, random_images(9))
    assert teacher.state_dict().keys() == before.keys()
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@configs
def test_ranges_of_views_give_what_all_views_give(
    config: dict[str, Any], make_teacher: MakeTeacher
):
    cfg, teacher, images = settings(**config), make_teacher(), random_images(9)
    records, logits = label(cfg, teacher, images)
    ranges = ((0, 1), (1, 3), (3, 4))
    parts = [label(cfg, teacher, images, first=first, last=last) for first, last in ranges]
    assert torch.equal(torch.cat([part for _, part in parts]), logits)
    joined = ViewRecords.cat([part for part, _ in parts])
    assert joined.ops == records.ops and joined.padding == records.padding
    assert joined.parameters.keys() == records.parameters.keys()
    for name, values in records.parameters.items():
        assert torch.equal(joined.parameters[name], values), name


@configs
@pytest.mark.parametrize("batch", [1, 4])
def test_the_size_of_a_forward_pass_makes_no_difference(
    config: dict[str, Any], batch: int, make_teacher: MakeTeacher
):
    cfg, teacher, images = settings(**config), make_teacher(), random_images(9)
    _, logits = label(cfg, teacher, images)
    _, small = label(cfg, teacher, images, batch=batch)
    torch.testing.assert_close(small, logits, rtol=1e-4, atol=1e-4)


def test_seed_decides_the_views_and_images_are_only_read(make_teacher: MakeTeacher):
    teacher, images = make_teacher(), random_images(9)
    copied = images.clone()
    first, other = (label(settings(), teacher, images, seed=seed)[1] for seed in (0, 1))
    assert torch.equal(label(settings(), teacher, images)[1], first)
    assert not torch.equal(first, other) and torch.equal(images, copied)


def test_a_teacher_without_batch_norm_labels_groups_as_it_labels_anything(
    make_teacher: MakeTeacher,
):
    teacher, images = make_teacher("vit_tiny"), random_images(8)
    cfg = settings(views=1, teacher_bn="batch", group=4)
    records, logits = label(cfg, teacher, images)
    with torch.no_grad():
        truth = teacher(shown(images, records, 0))
    torch.testing.assert_close(logits[0], truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("codec", "classes"), [("full", 4), ("int8", 4), ("int4", 5), ("topk", 4), ("topk", 300)]
)
def test_what_is_kept_of_batches_is_what_the_codec_keeps_of_the_whole(
    codec: str, classes: int, make_teacher: MakeTeacher
):
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes))
    cfg, images = settings(teacher_bn="batch", group=3, mix="cutmix"), random_images(10)
    _, logits = label(cfg, teacher, images, batch=4)
    stored = make_codec(codec, classes, {"top": 3} if codec == "topk" else {})
    wanted = stored.encode(logits)
    made = relabel(cfg, [teacher], images, MEAN, STD, 0, range(4), CPU, stored.encode, 4)
    for view, (_, kept) in enumerate(made):
        assert kept.keys() == wanted.keys()
        for name, values in kept.items():
            assert values.dtype == wanted[name].dtype
            assert np.array_equal(values[0].numpy(), wanted[name][view].numpy())


def test_a_teacher_that_is_no_number_is_refused_and_one_that_nobody_asks_is_not():
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    nn.init.constant_(teacher[1].bias, float("nan"))
    cfg, images = settings(), random_images(3)
    codec = make_codec("full", 2)
    with pytest.raises(RunError, match="not finite"):
        next(relabel(cfg, [teacher], images, MEAN, STD, 0, [0], CPU, codec.encode))
    records, kept = next(relabel(cfg, [teacher], images, MEAN, STD, 0, [2], CPU, None))
    assert kept == {} and records.count() == 1


def test_images_in_a_mapped_file_get_the_labels_of_images_in_memory(
    make_teacher: MakeTeacher, tmp_path: Path
):
    cfg, teacher, images = settings(mix="cutmix"), make_teacher(), random_images(9)
    images.numpy().tofile(tmp_path / "pixels")
    mapped = np.memmap(tmp_path / "pixels", np.uint8, "r+", shape=tuple(images.shape))
    _, truth = label(cfg, teacher, images)
    assert torch.equal(label(cfg, teacher, torch.from_numpy(mapped))[1], truth)
