"""Bases and coefficients against scikit-learn and numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import Tensor

from scdd.bilevel.bases import (
    factorise,
    mean_of,
    orthogonality_penalty,
    orthonormalised,
    principal_components,
)
from scdd.config.condense_pairs import BasesConfig

STARTS = ["pca", "random_orthonormal", "random_gaussian", "real_samples"]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def samples(count: int = 50, dim: int = 12) -> Tensor:
    """Correlated, and not centred."""
    return random(count, dim) @ random(dim, dim, seed=1) + 3


def factors(
    start: str, count: int = 5, coefficients: str = "project", rows: Tensor | None = None
) -> Any:
    cfg = BasesConfig.model_validate({"start": start, "coefficients": coefficients})
    rows = samples()[:7] if rows is None else rows
    return factorise(cfg, samples(), rows, count, torch.Generator().manual_seed(0))


def test_components_are_those_of_scikit_learn_up_to_sign():
    x = samples()
    found = principal_components(x, mean_of(x), 6).numpy()
    expected = PCA(6, svd_solver="full").fit(x.numpy()).components_
    expected *= np.sign((found * expected).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_the_entry_of_largest_magnitude_of_a_component_is_positive():
    x = samples()
    for component in principal_components(x, mean_of(x), 12):
        assert component[component.abs().argmax()] > 0


def test_float32_samples_in_any_number_of_blocks_give_the_mean_in_float64():
    x = samples(9000, 3).float()
    torch.testing.assert_close(mean_of(x), x.double().mean(dim=0))
    assert mean_of(x).dtype == torch.float64


@pytest.mark.parametrize("start", STARTS)
def test_as_many_vectors_as_axes_reproduce_the_rows(start: str):
    rows = samples()[3:9]
    torch.testing.assert_close(factors(start, 12, rows=rows).rows(), rows)


@pytest.mark.parametrize("start", STARTS)
def test_projected_coefficients_are_the_least_squares_solution(start: str):
    found = factors(start)
    centred = samples()[:7] - samples().mean(dim=0)
    solution, *_ = np.linalg.lstsq(found.basis.numpy().T, centred.numpy().T, rcond=None)
    np.testing.assert_allclose(found.coefficients.numpy(), solution.T, atol=1e-9)


@pytest.mark.parametrize(("start", "orthonormal"), [(s, s in STARTS[:2]) for s in STARTS])
def test_only_some_starts_are_orthonormal(start: str, orthonormal: bool):
    gram = factors(start).basis @ factors(start).basis.T
    assert torch.allclose(gram, torch.eye(5, dtype=gram.dtype), atol=1e-9) == orthonormal


def test_real_samples_are_centred_rows_of_length_1():
    found = factors("real_samples")
    ones = torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(found.basis.norm(dim=1), ones)
    centred = samples() - samples().mean(dim=0)
    likeness = (found.basis @ centred.T) / centred.norm(dim=1)
    torch.testing.assert_close(likeness.max(dim=1).values, ones)


def test_random_coefficients_are_as_large_as_projected_ones():
    projected = factors("pca", rows=samples()).coefficients
    drawn = factors("pca", coefficients="random", rows=samples()).coefficients
    assert not torch.allclose(drawn, projected)
    ratio = drawn.square().mean() / projected.square().mean()
    assert 0.7 < ratio.item() < 1.4


@given(st.integers(1, 8), st.integers(0, 10**6))
def test_orthonormalising_changes_no_row(count: int, seed: int):
    basis, coefficients = random(count, 8, seed=seed), random(5, count, seed=seed + 1)
    found, (absorbed,) = orthonormalised(basis, coefficients)
    before, after = coefficients @ basis, absorbed @ found
    assert (after - before).abs().max() <= 1e-6 * before.abs().max()
    torch.testing.assert_close(found @ found.T, torch.eye(count, dtype=found.dtype))


def test_dependent_vectors_lose_nothing_either():
    basis = random(2, 8)[[0, 1, 0]]
    found, (absorbed,) = orthonormalised(basis, random(5, 3, seed=2))
    torch.testing.assert_close(absorbed @ found, random(5, 3, seed=2) @ basis)


def test_an_orthonormal_basis_stays_as_it_is():
    basis = factors("pca").basis
    found, (absorbed,) = orthonormalised(basis, random(4, 5))
    torch.testing.assert_close(found, basis)
    torch.testing.assert_close(absorbed, random(4, 5))


def test_the_penalty_is_the_squared_distance_of_the_inner_products_from_the_identity():
    basis = random(3, 8)
    gram = basis.numpy() @ basis.numpy().T
    expected = np.linalg.norm(gram - np.eye(3), "fro") ** 2
    assert orthogonality_penalty(basis).item() == pytest.approx(expected)
    assert orthogonality_penalty(factors("pca").basis).item() == pytest.approx(0, abs=1e-18)
