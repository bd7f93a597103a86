"""The moving average of weights against that of timm."""

import copy

import torch
from timm.utils import ModelEmaV2
from torch import nn

from scdd.posttraining.average import follow, take_buffers


def test_the_average_is_that_of_timm_and_statistics_are_those_in_training():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    average, theirs = copy.deepcopy(net), ModelEmaV2(net, decay=0.7)
    for _ in range(5):
        net(torch.randn(4, 3, 8, 8) + 1)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        follow(average, net, 0.7)
        theirs.update(net)
    for mine, wanted in zip(average.parameters(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(mine, wanted)
    assert take_buffers(average, net) is average
    for mine, wanted in zip(average.buffers(), net.buffers(), strict=True):
        assert torch.equal(mine, wanted)


def test_without_decay_the_average_is_the_student_to_the_last_bit():
    torch.manual_seed(0)
    net, average = nn.Linear(7, 5), nn.Linear(7, 5)
    follow(average, net, 0.0)
    assert all(
        torch.equal(*pair) for pair in zip(average.parameters(), net.parameters(), strict=True)
    )
