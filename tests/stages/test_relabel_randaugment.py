"""Soft labels of augmented views, from relabel to the batches that a student sees."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from scdd.config.relabel import RandAugmentConfig, RelabelConfig
from scdd.distilled import DistilledDataset


@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
@pytest.mark.parametrize("grouped", [{}, {"teacher_bn": "batch", "group": 4}], ids=["", "grouped"])
def test_the_stored_label_is_the_teachers_answer_to_the_pixels_served(
    mix: str,
    grouped: dict[str, Any],
    make_distilled: Callable[..., DistilledDataset],
    make_teacher: Callable[..., nn.Module],
):
    steps = RandAugmentConfig(count=2, magnitude=9)
    cfg = RelabelConfig(views=3, randaugment=steps, mix=mix, **grouped)
    data = make_distilled(cfg)
    assert "randaugment" in data.records.ops
    teacher = make_teacher()
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d) and grouped:
            module.train()
    for epoch in range(3):
        shown = 0
        for batch in data.epoch(epoch, 4, torch.Generator().manual_seed(epoch)):
            truth = teacher(batch.images)
            # Labels are stored as float16: 11 bits.
            torch.testing.assert_close(batch.logits, truth, rtol=1e-3, atol=1e-3)
            shown += len(batch.images)
        assert shown == len(data)


def test_without_the_operations_the_labels_would_be_others(
    make_distilled: Callable[..., DistilledDataset], make_teacher: Callable[..., nn.Module]
):
    data = make_distilled(RelabelConfig(views=1, randaugment=RandAugmentConfig()))
    data.records.parameters["randaugment"].zero_()
    batch = next(data.epoch(0, len(data), torch.Generator()))
    assert (batch.logits - make_teacher()(batch.images)).abs().max() > 0.1
