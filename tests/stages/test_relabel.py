"""Soft labels: the teacher's own answers on what is shown, in eval mode or by groups."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.config.relabel import RelabelConfig
from scdd.distilled import ViewRecords, render_views
from scdd.stages.relabel import relabel
from tests.stages.conftest import CPU, MEAN, STD, random_images

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


def label(
    cfg: RelabelConfig,
    teacher: nn.Module,
    images: Tensor,
    first: int = 0,
    last: int | None = None,
    batch: int = 500,
    seed: int = 0,
) -> tuple[ViewRecords, Tensor]:
    last = cfg.views if last is None else last
    return relabel(cfg, teacher, images, MEAN, STD, seed, first, last, CPU, batch)


def shown(images: Tensor, records: ViewRecords, view: int) -> Tensor:
    """Normalised pixels of one view of all images."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (render_views(images, records, view, torch.arange(len(images))) - mean) / std


@configs
@pytest.mark.parametrize("arch", ["resnet8", "mobilenet_v3_large"])
def test_labels_are_the_answers_to_the_pixels_that_a_student_will_see(
    config: dict[str, Any], arch: str, make_teacher: MakeTeacher
):
    cfg, teacher, images = settings(**config), make_teacher(arch), random_images(13)
    records, logits = label(cfg, teacher, images)
    assert logits.shape == (4, 13, 4) and logits.dtype == torch.float32
    assert records.count() == 4 and ("group" in records.parameters) is (cfg.teacher_bn == "batch")
    reference = copy.deepcopy(teacher).eval()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d) and cfg.teacher_bn == "batch":
            module.train()  # dropout stays off
    for view in range(4):
        pixels = shown(images, records, view)
        group = (
            torch.zeros(13) if cfg.teacher_bn == "running" else records.parameters["group"][view]
        )
        for number in group.unique():
            members = (group == number).nonzero().squeeze(1)
            truth = reference(pixels[members])
            torch.testing.assert_close(logits[view, members], truth, rtol=1e-4, atol=1e-4)


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
    parts = [label(cfg, teacher, images, first, last) for first, last in ((0, 1), (1, 3), (3, 4))]
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
