"""Approximation networks: what they can learn, and what is said of them."""

from typing import Any

import pytest
import torch
from sklearn.metrics import r2_score
from torch import Tensor

from scdd.bilevel.approximation import fit_approximation
from scdd.config.condense_pairs import ApproximationConfig
from scdd.errors import RunError


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fit(own: Tensor, turned: Tensor, seed: int = 0, **changes: Any) -> Any:
    cfg = ApproximationConfig.model_validate({"hidden": 4, "steps": 100} | changes)
    return fit_approximation(cfg, own, turned, torch.Generator().manual_seed(seed))


def shifts(networks: Any, own: Tensor) -> Tensor:
    return torch.stack([networks.shift(view, own) for view in range(len(networks.w0))])


def test_where_nothing_shifts_nothing_is_predicted_to():
    own = random(20, 6)
    found = fit(own, own.expand(3, 20, 6))
    assert shifts(found.networks, own).abs().max() < 1e-6
    assert found.explained == (1.0, 1.0, 1.0)


def test_before_any_step_nothing_is_shifted():
    own = random(20, 6)
    found = fit(own, random(2, 20, 6, seed=1), steps=1, lr=1e-12)
    assert shifts(found.networks, own).abs().max() < 1e-6


def test_networks_that_diverge_are_refused_in_one_sentence():
    with pytest.raises(RunError, match=r"lower condense_pairs\.approximate\.lr \(now 1e\+20\)"):
        fit(random(20, 6), random(2, 20, 6, seed=1), lr=1e20)


def test_a_shift_of_low_rank_is_learnt_to_the_end():
    own = 30 * random(40, 6)
    turned = torch.stack([own + own @ random(6, 2, seed=s) @ random(2, 6, seed=9) for s in (1, 2)])
    found = fit(own, turned, hidden=8, steps=600, lr=0.03)
    assert min(found.explained) > 0.99


def test_what_is_explained_is_what_scikit_learn_says():
    own, turned = random(30, 6), random(2, 30, 6, seed=1)
    found = fit(own, turned)
    for view in range(2):
        wanted, predicted = turned[view] - own, found.networks.shift(view, own)
        expected = r2_score(wanted, predicted, multioutput="variance_weighted")
        assert found.explained[view] == pytest.approx(expected, abs=1e-5)
        assert 0 < found.explained[view] < 1


def test_the_size_of_coefficients_does_not_matter():
    own, turned = random(30, 6), random(2, 30, 6, seed=1)
    small, large = fit(own, turned), fit(1024 * own, 1024 * turned)
    torch.testing.assert_close(
        shifts(large.networks, 1024 * own) / 1024, shifts(small.networks, own)
    )


def test_the_same_seed_gives_the_same_networks():
    own, turned = random(30, 6), random(2, 30, 6, seed=1)
    first, again, other = fit(own, turned), fit(own, turned), fit(own, turned, seed=1)
    assert torch.equal(first.networks.w0, again.networks.w0)
    assert not torch.equal(first.networks.w0, other.networks.w0)


def test_networks_have_the_shapes_of_the_bill():
    found = fit(random(30, 6), random(3, 30, 6, seed=1), hidden=5)
    shapes = [tuple(part.shape) for part in found.networks]
    assert shapes == [(3, 5, 6), (3, 5), (3, 6, 5), (3, 6)]
    assert not any(part.requires_grad for part in found.networks)
