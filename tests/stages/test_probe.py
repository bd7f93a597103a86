"""The probe: teacher = backbone + head, chosen penalty, and a backbone that stays as it was."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from scdd.config.probe import ProbeConfig
from scdd.datasets import ResidentSource
from scdd.models import create_model
from scdd.stages.probe import probe
from tests.stages.conftest import CPU, SIZE

MakeSource = Callable[..., ResidentSource]


@pytest.fixture(params=["resnet8", "mobilenet_v3_large", "vit_tiny"])
def backbone(request: pytest.FixtureRequest) -> nn.Module:
    """A random backbone in train mode, with statistics of some random batches."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = create_model(request.param, 0, SIZE).train()
        with torch.no_grad():
            for _ in range(3):
                net(torch.randn(16, 3, SIZE, SIZE))
    return net


def settings(**changes: Any) -> ProbeConfig:
    base: dict[str, Any] = {"l2": (0.01,), "crops": 0, "iterations": 300}
    return ProbeConfig(**(base | changes))


def pixels(source: ResidentSource) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (source.mean, source.std))
    return (source.images / 255 - mean) / std


def test_the_teacher_is_the_backbone_with_a_linear_head(
    backbone: nn.Module, make_source: MakeSource
):
    train, val = make_source(40), make_source(20, seed=1)
    before = copy.deepcopy(backbone.state_dict())
    teacher = probe(settings(crops=1), backbone, train, val, 0, CPU).teacher
    assert teacher.num_classes == 4 and not teacher.training
    own = teacher.state_dict()
    for name, tensor in before.items():
        assert torch.equal(backbone.state_dict()[name], tensor), f"{name} of the backbone moved"
        assert torch.equal(own[name], tensor), f"{name} of the teacher is not the backbone's"
    head: Any = teacher.get_submodule(str(teacher.head))
    with torch.no_grad():
        features = backbone.eval()(pixels(val))
        torch.testing.assert_close(
            teacher(pixels(val)), features @ head.weight.T + head.bias, rtol=1e-4, atol=1e-4
        )


def test_the_head_is_scikit_learns_on_the_features(make_source: MakeSource):
    torch.manual_seed(3)
    net = create_model("resnet8", 0, SIZE)
    train, val = make_source(60), make_source(40, seed=1)
    found = probe(settings(), net, train, val, 0, CPU)
    with torch.no_grad():
        x, test = (net.eval()(pixels(source)).double().numpy() for source in (train, val))
        answers = torch.softmax(found.teacher(pixels(val)), dim=1).numpy()
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-10, max_iter=5000)
    model.fit(scaler.transform(x), train.labels.numpy())
    truth = model.predict_proba(scaler.transform(test))
    assert abs(answers - truth).max() < 1e-3
    right = 100 * (truth.argmax(axis=1) == val.labels.numpy()).mean()
    assert found.accuracy.top1 == pytest.approx(right) and found.l2 == 0.01


def test_crops_are_more_examples_drawn_by_the_seed(make_source: MakeSource):
    torch.manual_seed(3)
    net = create_model("resnet8", 0, SIZE)
    train, val = make_source(40), make_source(20, seed=1)

    def head(seed: int, **changes: Any) -> torch.Tensor:
        return probe(settings(**changes), net, train, val, seed, CPU).teacher.get_parameter(
            "fc.weight"
        )

    plain, one, again = head(0), head(0, crops=1), head(0, crops=1)
    assert torch.equal(one, again) and not torch.equal(one, plain)
    assert not torch.equal(head(1, crops=1), one)
    assert torch.equal(head(1), plain), "without crops nothing is drawn"


def test_of_several_penalties_one_that_ruins_the_fit_is_not_taken(make_source: MakeSource):
    torch.manual_seed(3)
    net = create_model("resnet8", 0, SIZE)
    train, val = make_source(80), make_source(40, seed=1)
    for order in ((1e4, 1e-3), (1e-3, 1e4)):
        found = probe(settings(l2=order), net, train, val, 0, CPU)
        assert found.l2 == 1e-3 and found.accuracy.top1 == 100


def test_the_penalty_is_not_chosen_by_the_validation_images(make_source: MakeSource):
    torch.manual_seed(3)
    net = create_model("resnet8", 0, SIZE)
    train, val = make_source(80), make_source(40, seed=1)
    liar = ResidentSource(val.images, 3 - val.labels, val.classes, val.mean, val.std)
    honest, fooled = (
        probe(settings(l2=(1e-3, 0.3)), net, train, source, 0, CPU) for source in (val, liar)
    )
    assert honest.l2 == fooled.l2
    assert torch.equal(*(each.teacher.get_parameter("fc.weight") for each in (honest, fooled)))


def test_a_class_with_few_images_does_not_break_the_choice(make_source: MakeSource):
    torch.manual_seed(3)
    net = create_model("resnet8", 0, SIZE)
    source = make_source(9)
    for seed in range(5):
        found = probe(settings(l2=(1e-3, 1e-2), holdout=0.5), net, source, source, seed, CPU)
        assert len(found.teacher.get_parameter("fc.weight")) == 4
