"""Supervised training: cross-entropy by hand, and forgetting against a replay of predictions."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scdd.config.objectives import SupervisedConfig
from scdd.config.squeeze import SqueezeConfig
from scdd.config.views import ViewConfig
from scdd.models import create_model
from scdd.objectives import Batch, create_objective
from scdd.objectives.supervised import Supervised
from tests.objectives.cases import Flat, outputs_of

SIZE, CLASSES = 8, 5


def new(label_smoothing: float = 0.0, images: int = 12) -> Supervised:
    torch.manual_seed(0)
    cfg = SqueezeConfig(
        arch="resnet8",
        objective=SupervisedConfig(label_smoothing=label_smoothing),
        views=(ViewConfig(),),
    )
    objective = create_objective(cfg, SIZE, CLASSES, images)
    assert isinstance(objective, Supervised)
    return objective.train()


def batch(view: Tensor, labels: Tensor, rows: Tensor | None = None) -> Batch:
    rows = torch.arange(len(view)) if rows is None else rows
    return Batch((view,), labels, rows, torch.Generator())


def images(step: int = 0, count: int = 6) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(step))


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Of the label, mixed with the uniform distribution, image by image."""
    total = torch.zeros((), dtype=torch.float64)
    for row, label in zip(logits, labels.tolist(), strict=True):
        log_p = [logit - torch.log(sum(torch.exp(other) for other in row)) for logit in row]
        total = total - (1 - smoothing) * log_p[label] - smoothing * sum(log_p) / len(log_p)
    return total / len(labels)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_those_of_the_definition(smoothing: float):
    objective, view = new(smoothing), images()
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    twin = copy.deepcopy(nn.Sequential(objective.backbone, objective.classifier)).double()
    loss = objective(batch(view, labels))
    loss.value.backward()
    truth = cross_entropy(twin(view.double()), labels, smoothing)
    truth.backward()
    assert loss.value.item() == pytest.approx(truth.item(), rel=1e-5)
    for mine, reference in zip(objective.parameters(), twin.parameters(), strict=True):
        assert (mine.grad - reference.grad).norm() <= 1e-3 * reference.grad.norm() + 1e-7
    features = twin[0](view.double()).detach()
    unit = features / features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(loss.embedding.double(), unit, rtol=0, atol=1e-5)
    assert not loss.embedding.requires_grad


def test_backbone_and_classifier_make_up_the_whole_network():
    objective = new().eval()
    net = create_model("resnet8", CLASSES, SIZE).eval()
    head = {f"fc.{name}": tensor for name, tensor in objective.classifier.state_dict().items()}
    net.load_state_dict(objective.backbone.state_dict() | head)
    x = images()
    assert torch.equal(net(x), objective.classifier(objective.backbone(x)))


def test_before_training_the_loss_is_near_the_logarithm_of_the_number_of_classes():
    objective, labels = new(), torch.arange(100) % CLASSES
    objective = Supervised(objective.backbone, objective.cfg, CLASSES, 100).train()
    nn.init.normal_(objective.classifier.weight, std=1e-3)
    nn.init.zeros_(objective.classifier.bias)
    loss = objective(batch(images(count=100), labels)).value.item()
    assert loss == pytest.approx(math.log(CLASSES), abs=0.01)


N = 4
PRESENTATIONS = st.lists(
    st.tuples(
        st.permutations(range(N)),
        st.integers(1, N),
        st.lists(st.booleans(), min_size=N, max_size=N),
    ),
    max_size=12,
)


@settings(max_examples=50)
@given(PRESENTATIONS)
def test_forgetting_is_what_a_replay_of_the_predictions_counts(
    presentations: list[tuple[list[int], int, list[bool]]],
):
    """Images that predict one of three classes themselves, in any order and as often as chance."""
    objective = Supervised(Flat(3), SupervisedConfig(), num_classes=3, num_images=N)
    nn.init.eye_(objective.classifier.weight)
    nn.init.zeros_(objective.classifier.bias)
    labels, history = torch.tensor([0, 1, 2, 0]), {row: [] for row in range(N)}
    for order, count, truths in presentations:
        rows = torch.tensor(order[:count])
        correct = torch.tensor(truths[:count])
        predicted = torch.where(correct, labels[rows], (labels[rows] + 1) % 3)
        view = nn.functional.one_hot(predicted, 3).float().view(count, 3, 1, 1)
        objective(batch(view, labels[rows], rows))
        for row, right in zip(order, truths[:count], strict=False):
            history[row].append(right)
    found = objective.forgetting
    assert found["forgetting"].dtype == torch.int32 and found["learnt"].dtype == torch.bool
    for row, predictions in history.items():
        falls = sum(before and not after for before, after in pairwise(predictions))
        assert found["forgetting"][row] == falls
        assert found["learnt"][row] == any(predictions)


def test_predictions_are_those_of_the_step_before_the_weights_move():
    objective, rows = new(), torch.tensor([7, 2, 11, 0, 5, 3])
    logits = outputs_of(objective.classifier)
    optimizer = torch.optim.SGD(objective.parameters(), lr=2.0)
    labels = torch.arange(12) % CLASSES
    for step in range(6):
        loss = objective(batch(images(step), labels[rows], rows))
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    right = torch.stack([out.argmax(dim=1) == labels[rows] for out in logits])
    falls = (right[:-1] & ~right[1:]).sum(dim=0)
    assert falls.sum() > 0, "nothing was forgotten, so nothing was shown"
    assert objective.forgetting["forgetting"][rows].tolist() == falls.tolist()
    assert objective.forgetting["learnt"][rows].tolist() == right.any(dim=0).tolist()
    others = [row for row in range(12) if row not in rows]
    assert not objective.forgetting["forgetting"][others].any()
    assert not objective.forgetting["learnt"][others].any()


def test_under_autocast_the_loss_itself_is_in_float32():
    objective, labels = new(), torch.tensor([0, 4, 2, 2, 1, 3])
    logits = outputs_of(objective.classifier)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(batch(images(), labels))
    assert logits[0].dtype == torch.bfloat16, "autocast did nothing, so nothing was shown"
    assert loss.value.dtype == loss.embedding.dtype == torch.float32
    truth = cross_entropy(logits[0].double(), labels, 0.0)
    assert loss.value.item() == pytest.approx(truth.item(), rel=1e-6)
