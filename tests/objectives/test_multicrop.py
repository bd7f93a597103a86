"""Multi-crop: one pass per resolution, order kept, and which pairs of views the loss is of."""

import math

import pytest
import torch
from torch import nn

from scdd.models import create_model
from scdd.objectives.multicrop import crop_features, swapped_prediction_loss


def test_the_features_of_each_view_come_back_in_its_place():
    torch.manual_seed(0)
    backbone = create_model("resnet8", 0, 16).eval()
    views = [torch.randn(3, 3, side, side) for side in (16, 16, 8, 12, 8, 16)]
    alone = [backbone(view) for view in views]
    together = crop_features(backbone, views)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_batchnorm_sees_one_batch_per_resolution_in_their_order():
    class Mean(nn.Module):
        """The images' own channels, normalised: the truth is the mean of the pixels."""

        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3, momentum=0.1)

        def forward(self, x):
            return self.bn(x).mean(dim=(2, 3))

    backbone = Mean().train()
    views = [torch.full((2, 3, side, side), value) for side, value in ((8, 1.0), (8, 3.0), (4, 7))]
    views += [torch.full((2, 3, 4, 4), 9.0)]
    for steps in range(1, 100):
        crop_features(backbone, views)
        assert int(backbone.bn.num_batches_tracked) == 2 * steps
    # 2 is the mean of the global views, 8 of the local ones, which come last.
    assert backbone.bn.running_mean.tolist() == pytest.approx([2 * 0.9 / 1.9 + 8 / 1.9] * 3)


@pytest.mark.parametrize("local", [0, 1, 6])
def test_every_target_meets_every_view_but_its_own_once(local: int):
    # The cross-entropy of target g and view v is a number whose bits are found in no other pair.
    views = 2 + local
    parts = torch.tensor([[2.0 ** (2 * v + g) for g in (0, 1)] for v in range(views)]).double()
    probability = torch.exp(-1 - parts / 2 ** (2 * views))
    rest = 1 - probability.sum(dim=1, keepdim=True)
    logits = torch.cat([probability, rest], dim=1).log()[:, None]
    targets = torch.eye(3, dtype=torch.float64)[:2, None]

    pairs = 2 * (2 + local) - 2
    total = swapped_prediction_loss(targets, logits).item() * pairs
    bits = round((total - pairs) * 2 ** (2 * views))
    assert bits == sum(2 ** (2 * v + g) for g in (0, 1) for v in range(views) if v != g)


def test_the_loss_is_least_where_the_predictions_are_the_targets():
    draw = torch.Generator().manual_seed(0)
    target = torch.rand(1, 5, 7, generator=draw).softmax(dim=2).expand(2, 5, 7)
    entropy = -(target[0] * target[0].log()).sum(dim=1).mean()
    logits = target.log().expand(2, 5, 7).clone().requires_grad_(True)
    loss = swapped_prediction_loss(target, logits)
    loss.backward()
    assert loss.item() == pytest.approx(entropy.item(), rel=1e-5)
    assert logits.grad is not None and logits.grad.abs().max() < 1e-7
    uniform = swapped_prediction_loss(target, torch.zeros(2, 5, 7))
    assert uniform.item() == pytest.approx(math.log(7), rel=1e-5)
