"""Spread and rank of embeddings where they are known, and what the monitor makes of them."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy
from torch import Tensor, nn

from scdd.config.squeeze import SqueezeConfig
from scdd.distributed import rank_and_size
from scdd.divergence import Monitor, effective_rank, spread
from scdd.errors import RunError
from tests.two_processes import TwoProcesses

CPU = torch.device("cpu")


def on_the_sphere(count: int, axes: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(count, axes, generator=draw), dim=1)


@pytest.mark.parametrize("axes", [2, 16, 128])
def test_one_point_has_no_spread_and_one_direction(axes: int):
    point = on_the_sphere(1, axes).expand(50, axes)
    assert spread(point).item() == pytest.approx(0, abs=1e-5)
    assert effective_rank(point) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("axes", [16, 128, 512])
def test_points_uniform_on_the_sphere_have_a_spread_of_one(axes: int):
    assert spread(on_the_sphere(4000, axes)).item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("axes", [4, 64])
def test_two_opposite_points_have_the_spread_of_their_coordinates(axes: int):
    point = on_the_sphere(1, axes)
    both = torch.cat([point, -point]).repeat(10, 1)
    assert spread(both).item() == pytest.approx(point.abs().mean().item() * math.sqrt(axes))
    assert effective_rank(both) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("directions", [1, 2, 7, 32])
def test_the_rank_of_equally_used_orthogonal_directions_is_their_number(directions: int):
    rotation, _ = torch.linalg.qr(on_the_sphere(32, 32))
    embedding = rotation[:directions].repeat_interleave(5, dim=0)
    assert effective_rank(embedding) == pytest.approx(directions, rel=1e-4)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=8))
def test_the_rank_is_the_exponential_of_the_entropy_of_the_singular_values(values: list[float]):
    size = len(values)
    left, _ = torch.linalg.qr(on_the_sphere(12, size))
    right, _ = torch.linalg.qr(on_the_sphere(size, size))
    embedding = left @ torch.diag(torch.tensor(values)) @ right
    assert effective_rank(embedding) == pytest.approx(np.exp(entropy(values)), rel=1e-3)


def watching(collapse_below: float = 0.02) -> tuple[Monitor, nn.Module]:
    monitor = Monitor(SqueezeConfig(collapse_below=collapse_below), "squeeze", None, CPU)
    return monitor, nn.Linear(2, 2)


def test_the_epoch_is_logged_as_the_mean_of_its_steps_and_the_next_starts_anew():
    monitor, _ = watching()
    wide, point = on_the_sphere(4000, 128), on_the_sphere(1, 128).expand(4000, 128)
    monitor.add(torch.tensor(3.0), point)
    monitor.add(torch.tensor(1.0), wide)
    closed = monitor.close()
    assert closed["loss"] == 2 and closed["spread"] == pytest.approx(0.5, abs=0.01)
    assert closed["effective_rank"] > 100, "of the last step"
    monitor.add(torch.tensor(7.0), point)
    closed = monitor.close()
    assert closed["loss"] == 7 and closed["spread"] < 1e-4


def test_a_collapse_is_seen_at_its_step_whatever_the_epoch_was_before():
    monitor, trained = watching()
    wide, point = on_the_sphere(64, 16), on_the_sphere(1, 16).expand(64, 16)
    for _ in range(100):
        monitor.add(torch.tensor(1.0), wide)
    monitor.check(100, trained)
    monitor.add(torch.tensor(1.0), point)
    with pytest.raises(RunError, match=r"\(spread 0\.000 at step 101, below"):
        monitor.check(101, trained)
    monitor.add(torch.tensor(1.0), wide)
    monitor.check(102, trained)


def test_points_that_never_spread_are_no_matter_where_the_floor_is_zero():
    monitor, trained = watching(collapse_below=0.0)
    monitor.add(torch.tensor(1.0), on_the_sphere(1, 16).expand(64, 16))
    monitor.check(1, trained)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_loss_that_is_no_number_is_remembered_until_it_is_checked(value: float):
    monitor, trained = watching()
    for loss in (1.0, value, 1.0):
        monitor.add(torch.tensor(loss), on_the_sphere(64, 16))
    with pytest.raises(RunError, match=rf"squeeze: the loss is {value} at step 3; lower"):
        monitor.check(3, trained)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_told_apart_from_the_loss(value: float):
    monitor, trained = watching()
    monitor.add(torch.tensor(1.0), on_the_sphere(64, 16))
    with torch.no_grad():
        trained.get_parameter("weight")[1, 1] = value
    with pytest.raises(RunError, match="squeeze: a weight is no number at step 1; lower"):
        monitor.check(1, trained)


def monitored(first: int, last: int) -> dict[str, float]:
    """What an epoch of one step comes to on a process that holds some of the rows."""
    rows = on_the_sphere(8, 16)[first:last]
    monitor = Monitor(SqueezeConfig(), "squeeze", None, CPU)
    monitor.add(rows.sum() / len(rows), rows)
    monitor.check(1, nn.Linear(1, 1))
    return monitor.close()


def share() -> dict[str, float]:
    rank, _ = rank_and_size()
    return monitored(4 * rank, 4 * rank + 4)


def test_two_processes_watch_the_batch_of_both(two_processes: TwoProcesses):
    alone = monitored(0, 8)
    for found in two_processes(share):
        assert found == pytest.approx(alone, rel=1e-5)
