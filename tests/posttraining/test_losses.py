"""Losses of a student in closed form, with their gradients, in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scdd.config.posttrain import PosttrainConfig
from scdd.distilled import Batch
from scdd.posttraining import hard_loss, soft_loss

SIZE = 8


def settings(**changes: Any) -> PosttrainConfig:
    return PosttrainConfig(**({"temperature": 4.0} | changes))


def example(count: int = 6, classes: int = 5) -> tuple[Tensor, Batch]:
    """Logits of a student, and a batch with all that losses want."""
    draw = torch.Generator().manual_seed(0)
    batch = Batch(
        images=torch.zeros(count, 3, SIZE, SIZE),
        logits=8 * torch.randn(count, classes, generator=draw),
        labels=torch.randint(classes, (count,), generator=draw),
        partner_labels=torch.randint(classes, (count,), generator=draw),
        label_weight=torch.rand(count, generator=draw),
    )
    return 8 * torch.randn(count, classes, generator=draw), batch


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def differences(loss: Callable[[np.ndarray], float], x: np.ndarray) -> np.ndarray:
    """Gradient by central differences in float64."""
    found = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        high, low = x.copy(), x.copy()
        high[place] += 1e-5
        low[place] -= 1e-5
        found[place] = (loss(high) - loss(low)) / 2e-5
    return found


@pytest.mark.parametrize("temperature", [1.0, 4.0, 30.0])
@pytest.mark.parametrize("scale", [False, True])
def test_the_soft_loss_is_the_softened_divergence_and_so_is_its_gradient(
    temperature: float, scale: bool
):
    cfg = settings(temperature=temperature, scale_loss=scale)
    logits, batch = example()
    assert batch.logits is not None
    teacher = softmax(batch.logits.double().numpy() / temperature)
    factor = temperature**2 if scale else 1

    def truth(x: np.ndarray) -> float:
        student = softmax(x / temperature)
        return factor * (teacher * np.log(teacher / student)).sum(axis=1).mean()

    logits.requires_grad_(True)
    loss = soft_loss(cfg, logits, batch)
    loss.backward()
    x = logits.detach().double().numpy()
    assert loss.item() == pytest.approx(truth(x), rel=1e-4)
    closed = factor * (softmax(x / temperature) - teacher) / (temperature * len(x))
    np.testing.assert_allclose(closed, differences(truth, x), atol=1e-7 * factor)
    assert logits.grad is not None
    error = np.linalg.norm(logits.grad.numpy() - closed) / np.linalg.norm(closed)
    assert error < 1e-4


def test_the_soft_loss_is_zero_for_the_teacher_and_for_it_shifted():
    _, batch = example()
    assert batch.logits is not None
    for shift in (0.0, 3.0):
        assert abs(soft_loss(settings(), batch.logits + shift, batch).item()) < 1e-6


def test_the_soft_loss_is_computed_in_float32_for_low_precision_logits():
    logits, batch = example()
    low = soft_loss(settings(temperature=20.0), logits.bfloat16(), batch)
    assert low.dtype == torch.float32
    wanted = soft_loss(settings(temperature=20.0), logits.bfloat16().float(), batch)
    assert low.item() == wanted.item()


def test_the_hard_loss_shares_the_label_with_the_partner_and_so_does_its_gradient():
    logits, batch = example()
    own, other = batch.labels.numpy(), batch.partner_labels.numpy()
    weight, rows = batch.label_weight.double().numpy(), np.arange(len(logits))

    def truth(x: np.ndarray) -> float:
        logs = np.log(softmax(x))
        return -(weight * logs[rows, own] + (1 - weight) * logs[rows, other]).mean()

    logits.requires_grad_(True)
    loss = hard_loss(logits, batch)
    loss.backward()
    x = logits.detach().double().numpy()
    assert loss.item() == pytest.approx(truth(x), rel=1e-5)
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), differences(truth, x), atol=1e-6)


@pytest.mark.parametrize("hard_weight", [0.0, 0.025, 2.0])
def test_the_squared_error_of_logits_and_the_cross_entropy_are_those_of_torch_in_float64(
    hard_weight: float,
):
    """Torch takes the mixed labels as probabilities of the classes."""
    logits, batch = example()
    assert batch.logits is not None
    classes = logits.shape[1]
    one_hot = torch.eye(classes, dtype=torch.float64)
    weight = batch.label_weight.double()[:, None]
    mixed = weight * one_hot[batch.labels] + (1 - weight) * one_hot[batch.partner_labels]
    x = logits.double().requires_grad_(True)
    wanted = nn.MSELoss()(x, batch.logits.double()) + hard_weight * nn.CrossEntropyLoss()(x, mixed)
    wanted.backward()
    logits.requires_grad_(True)
    loss = soft_loss(settings(loss="mse", hard_weight=hard_weight), logits, batch)
    loss.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert logits.grad is not None and x.grad is not None
    torch.testing.assert_close(logits.grad.double(), x.grad, rtol=1e-4, atol=1e-6)


def test_the_cross_entropy_is_added_to_the_divergence_too_and_temperature_is_not_for_it():
    logits, batch = example()
    for temperature in (1.0, 20.0):
        parts = soft_loss(settings(temperature=temperature), logits, batch)
        whole = soft_loss(settings(temperature=temperature, hard_weight=0.5), logits, batch)
        assert whole.item() == pytest.approx((parts + 0.5 * hard_loss(logits, batch)).item())
    softened = {"loss": "mse", "temperature": 9.0, "scale_loss": True}
    plain = soft_loss(settings(loss="mse"), logits, batch)
    assert soft_loss(settings(**softened), logits, batch).item() == plain.item()


@pytest.mark.parametrize("kind", ["kl", "mse"])
def test_losses_are_in_float32_under_autocast_too(kind: str):
    logits, batch = example()
    cfg = settings(loss=kind, hard_weight=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        found = soft_loss(cfg, logits, batch)
    assert found.dtype == torch.float32 and found.item() == soft_loss(cfg, logits, batch).item()
