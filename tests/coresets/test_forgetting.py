"""The choice of what was forgotten most often, on histories written by hand."""

import torch

from scdd.coresets import most_forgotten
from scdd.seeding import generator


def counted(histories: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Events and whether ever right, of images whose presentations were right (1) or wrong (0)."""
    forgotten = torch.tensor([history.count("10") for history in histories])
    return forgotten, torch.tensor(["1" in history for history in histories])


def chosen(histories: list[str], count: int, seed: int = 0) -> list[int]:
    ties = generator(seed, "test")
    return most_forgotten(*counted(histories), count, ties).tolist()


def test_the_most_forgotten_come_first_and_the_never_learnt_before_them():
    assert chosen(["111111", "101010", "000000", "001100", "110101"], 5) == [2, 1, 4, 3, 0]
    assert chosen(["111111", "101010", "000000", "001100", "110101"], 2) == [2, 1]


def test_among_equals_every_order_comes_about():
    histories = ["0101", "1011", "0100", "1111"]
    orders = {tuple(chosen(histories, 4, seed)) for seed in range(60)}
    # 0 and 1 fell once, 2 fell once, too; 3 never.
    assert {order[3] for order in orders} == {3} and len(orders) == 6


def test_a_smaller_choice_is_the_beginning_of_a_larger_one():
    histories = ["0101", "1011", "0000", "1111", "0000"]
    assert chosen(histories, 3) == chosen(histories, 5)[:3]
