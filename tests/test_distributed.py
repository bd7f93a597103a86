"""What processes that train together share: two real ones against the same sums in one."""

import pytest
import torch
from torch import Tensor

from scdd import distributed
from scdd.distributed import (
    gather,
    gather_with_gradient,
    own_rows,
    rank_and_size,
    total,
    total_with_gradient,
)
from tests.two_processes import TwoProcesses

ROWS = 3


def part(rank: int) -> Tensor:
    """What a rank brings: float64 [3, 4]."""
    return torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(rank)).double()


WHOLE = torch.cat([part(0), part(1)])


def ranks() -> tuple[int, int]:
    return rank_and_size()


def test_the_processes_know_their_rank(two_processes: TwoProcesses):
    assert two_processes(ranks) == [(0, 2), (1, 2)]
    assert rank_and_size() == (0, 1)
    assert own_rows(4) == slice(0, 4)


def without_gradient() -> dict[str, Tensor]:
    rank, _ = rank_and_size()
    mine = part(rank).requires_grad_()
    truth = torch.tensor([True, False, rank == 1])
    transposed = torch.arange(6.0).view(2, 3).T  # its memory is not in the order of its rows
    pictures = part(rank).view(1, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    return {
        "gather": gather(mine),
        "own": gather(mine)[own_rows(ROWS)],
        "total": total(mine),
        "mine": mine,
        "truth": gather(truth),
        "count": gather(torch.tensor([rank], dtype=torch.int64)),
        "transposed": total(transposed),
        "mixed": total(transposed if rank == 0 else transposed.contiguous()),
        "gathered transposed": gather(transposed),
        "pictures": gather(pictures),
        "total of pictures": total(pictures),
    }


def test_rows_are_gathered_in_the_order_of_ranks_and_sums_are_over_all(
    two_processes: TwoProcesses,
):
    transposed = torch.arange(6.0).view(2, 3).T
    pictures = [part(rank).view(1, 3, 2, 2) for rank in range(2)]
    for rank, found in enumerate(two_processes(without_gradient)):
        assert torch.equal(found["gather"], WHOLE) and not found["gather"].requires_grad
        assert torch.equal(found["own"], part(rank))
        assert torch.equal(found["total"], part(0) + part(1)) and not found["total"].requires_grad
        assert torch.equal(found["mine"], part(rank)), "what a process brings stays as it is"
        assert found["truth"].tolist() == [True, False, False, True, False, True]
        assert found["count"].tolist() == [0, 1]
        assert torch.equal(found["transposed"], 2 * transposed)
        assert torch.equal(found["mixed"], 2 * transposed)
        assert torch.equal(found["gathered transposed"], torch.cat([transposed, transposed]))
        assert torch.equal(found["pictures"], torch.cat(pictures))
        assert torch.equal(found["total of pictures"], sum(pictures))


def test_alone_nothing_is_copied():
    mine = part(0).requires_grad_()
    for name in ("gather", "gather_with_gradient", "total", "total_with_gradient"):
        assert getattr(distributed, name)(mine) is mine


def loss_of(rows: Tensor, weight: Tensor) -> Tensor:
    """Every pair of rows matters, each in its own way; the gradient comes back transposed."""
    return ((rows @ rows.T).sin() * weight).sum()


def weights(rank: int) -> Tensor:
    """Ranks look at the shared rows in different ways."""
    draw = torch.Generator().manual_seed(10 + rank)
    return torch.randn(2 * ROWS, 2 * ROWS, generator=draw).double()


def gathered_gradient() -> Tensor:
    rank, _ = rank_and_size()
    mine = part(rank).requires_grad_()
    loss_of(gather_with_gradient(mine), weights(rank)).backward()
    return mine.grad


def test_gathered_rows_get_the_gradient_of_every_loss_they_are_in(two_processes: TwoProcesses):
    rows = WHOLE.clone().requires_grad_()
    sum(loss_of(rows, weights(rank)) for rank in range(2)).backward()
    torch.testing.assert_close(torch.cat(two_processes(gathered_gradient)), rows.grad)


def summed_gradient() -> Tensor:
    rank, _ = rank_and_size()
    mine = part(rank).requires_grad_()
    shared = total_with_gradient((mine.T @ mine).T)
    (shared.cos() * weights(rank)[:4, :4].T).sum().backward()
    return mine.grad


def test_a_sum_passes_its_gradient_on_to_all(two_processes: TwoProcesses):
    mine = [part(rank).requires_grad_() for rank in range(2)]
    shared = sum(rows.T @ rows for rows in mine).T
    sum((shared.cos() * weights(rank)[:4, :4].T).sum() for rank in range(2)).backward()
    for found, rows in zip(two_processes(summed_gradient), mine, strict=True):
        torch.testing.assert_close(found, rows.grad)


def failing(rank: int) -> Tensor:
    if rank_and_size()[0] == rank:
        raise RuntimeError("this one fails")
    return total(torch.ones(1))


@pytest.mark.slow  # starts the processes again
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_fails_the_test_and_not_the_next(
    rank: int, two_processes: TwoProcesses
):
    with pytest.raises(AssertionError, match=rf"(?s)rank {rank}: .*this one fails"):
        two_processes(failing, rank)
    assert two_processes(ranks) == [(0, 2), (1, 2)]
