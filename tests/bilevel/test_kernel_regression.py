"""The outer loss against scikit-learn, numpy and finite differences."""

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from torch import Tensor

from scdd.bilevel.kernel_regression import full_precision, kernel_regression, regression_loss
from scdd.errors import RunError
from scdd.models import create_model

RIDGE = 1e-3


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_ones(features: Tensor) -> np.ndarray:
    return np.hstack([features.numpy(), np.ones((len(features), 1))])


def strength(features: Tensor) -> float:
    """lambda: a share of the sum of squared lengths, the column of ones included."""
    return RIDGE * float((with_ones(features) ** 2).sum())


@pytest.mark.parametrize(("pairs", "width"), [(5, 9), (12, 4)])
def test_it_predicts_what_scikit_learn_predicts_with_a_penalised_bias(pairs: int, width: int):
    support, targets, queries = random(pairs, width), random(pairs, 3, seed=1), random(7, width)
    found = kernel_regression(support, targets, queries, RIDGE).numpy()
    alpha = strength(support)
    x, y, new = with_ones(support), targets.numpy(), with_ones(queries)
    dual = KernelRidge(alpha=alpha, kernel="linear").fit(x, y).predict(new)
    primal = Ridge(alpha=alpha, fit_intercept=False).fit(x, y).predict(new)
    np.testing.assert_allclose(found, dual, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found, primal, rtol=1e-8, atol=1e-10)


def test_the_loss_is_the_mean_over_images_and_axes():
    support, targets, queries = random(5, 9), random(5, 3, seed=1), random(7, 9, seed=2)
    wanted = random(7, 3, seed=3)
    predicted = kernel_regression(support, targets, queries, RIDGE)
    expected = sum(
        float((predicted[row, axis] - wanted[row, axis]) ** 2)
        for row in range(7)
        for axis in range(3)
    )
    found = regression_loss(support, targets, queries, wanted, RIDGE)
    assert found.item() == pytest.approx(expected / 21)


def test_gradients_through_a_network_are_those_of_finite_differences_with_lambda_held():
    torch.manual_seed(0)
    net = create_model("convnet_krr_w32", 0, 8).double().eval().requires_grad_(False)
    images, targets = random(5, 3, 8, 8), random(5, 4, seed=1)
    queries, wanted = net(random(6, 3, 8, 8, seed=2)), random(6, 4, seed=3)
    held = strength(net(images))

    def by_hand(images: Tensor, targets: Tensor) -> float:
        x, new = with_ones(net(images)), with_ones(queries)
        system = x @ x.T + held * np.eye(len(x))
        predicted = new @ x.T @ np.linalg.solve(system, targets.numpy())
        return float(((predicted - wanted.numpy()) ** 2).mean())

    leaves = images.clone().requires_grad_(), targets.clone().requires_grad_()
    loss = regression_loss(net(leaves[0]), leaves[1], queries, wanted, RIDGE)
    assert loss.item() == pytest.approx(by_hand(images, targets), rel=1e-10)
    by_image, by_target = torch.autograd.grad(loss, leaves)
    for seed in range(10, 13):
        step = random(*images.shape, seed=seed)
        slope = by_hand(images + 1e-6 * step, targets) - by_hand(images - 1e-6 * step, targets)
        assert float((by_image * step).sum()) == pytest.approx(slope / 2e-6, rel=1e-5)
        step = random(*targets.shape, seed=seed)
        slope = by_hand(images, targets + 1e-6 * step) - by_hand(images, targets - 1e-6 * step)
        assert float((by_target * step).sum()) == pytest.approx(slope / 2e-6, rel=1e-5)


def test_float32_features_are_solved_as_well_as_float64_ones():
    support, queries = random(40, 300), random(9, 300, seed=1)
    targets = random(40, 3, seed=2)
    exact = kernel_regression(support, targets, queries, 1e-6)
    found = kernel_regression(support.float(), targets.float(), queries.float(), 1e-6)
    assert found.dtype == torch.float64
    assert ((found - exact).norm() / exact.norm()).item() < 1e-4


def test_autocast_around_it_changes_nothing():
    support, targets, queries = (random(5, 9, seed=seed, dtype=torch.float32) for seed in range(3))
    alone = kernel_regression(support, targets, queries, RIDGE)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kernel_regression(support, targets, queries, RIDGE), alone)


def test_a_kernel_that_is_singular_up_to_rounding_is_solved_with_more_ridge():
    # All features equal: the kernel is all ones, and 1 + 3e-17 is 1 in float64, 1 + 3e-15 is not.
    predicted = kernel_regression(torch.zeros(3, 2), torch.ones(3, 1), torch.zeros(1, 2), 1e-17)
    assert predicted.isfinite().all()


@pytest.mark.parametrize(
    ("support", "sentence"),
    [
        (
            torch.full((3, 2), torch.nan),
            "condense_pairs: the kernel matrix of the 3 learnt images is not finite; lower "
            "condense_pairs.lr or condense_pairs.pool.lr and run again with --redo condense_pairs",
        ),
        (
            torch.zeros(3, 2),
            "condense_pairs: the kernel matrix of the 3 learnt images cannot be factorised; raise "
            "condense_pairs.ridge or lower condense_pairs.lr or condense_pairs.pool.lr and run "
            "again with --redo condense_pairs",
        ),
    ],
)
def test_a_kernel_that_cannot_be_solved_ends_in_one_sentence(support: Tensor, sentence: str):
    with pytest.raises(RunError) as caught:
        kernel_regression(support, torch.ones(3, 1), torch.ones(1, 2), 1e-30)
    assert str(caught.value) == sentence


def test_full_precision_gives_back_what_was_set():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
