"""Generators that depend on their arguments and on nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import scdd
from scdd.seeding import generator, seeded


def stream(seed: int, purpose: str, *index: int, count: int = 1000) -> torch.Tensor:
    return torch.randn(count, generator=generator(seed, purpose, *index))


def test_the_same_arguments_give_the_same_stream_whatever_was_drawn_before():
    first = stream(3, "views", 1, 2)
    torch.rand(10)
    stream(4, "views", 1, 2)
    assert torch.equal(stream(3, "views", 1, 2), first)


def test_making_a_generator_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    generator(0, "views", 7)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "other",
    [
        (1, "views", 0, 0),
        (0, "order", 0, 0),
        (0, "views", 1, 0),
        (0, "views", 0, 1),
        (0, "views", 0),
        (0, "views", 0, 0, 0),
        (2**32, "views", 0, 0),
        (2**63, "views", 0, 0),
        (0, "Views", 0, 0),
        (0, "views ", 0, 0),
    ],
)
def test_every_argument_changes_the_stream(other):
    assert not torch.equal(stream(*other), stream(0, "views", 0, 0))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, "views"), (0, "views", 0)),
        ((7, "views"), (7, "views", 0)),
        ((0, "views", 2**32 + 5), (0, "views", 5, 1)),
        ((0, "views", 1, 2), (0, "views", 2, 1)),
        ((1, "views", 0), (0, "views", 1)),
        ((1, "views", 2), (2, "views", 1)),
        ((0, "views", 12), (0, "views", 1, 2)),
    ],
)
def test_arguments_are_never_run_together(one, other):
    assert not torch.equal(stream(*one), stream(*other))


def test_an_index_is_hashed_not_added_to_the_seed():
    seeds = [
        generator(seed, purpose, index).initial_seed()
        for seed in range(20)
        for purpose in ("recover", "relabel", "views")
        for index in range(50)
    ]
    assert len(set(seeds)) == len(seeds) == 3000


def largest_correlation(streams: list[torch.Tensor]) -> float:
    matrix = torch.corrcoef(torch.stack(streams))
    return (matrix - torch.eye(len(streams))).abs().max().item()


def test_neighbouring_seeds_and_indices_give_unrelated_streams():
    # 780 pairs of 1000 draws: chance alone gives at most about 3.2 / sqrt(1000) = 0.10.
    assert largest_correlation([stream(seed, "views", 0) for seed in range(40)]) < 0.16
    assert largest_correlation([stream(0, "views", index) for index in range(40)]) < 0.16
    assert largest_correlation([stream(0, f"views{i}") for i in range(40)]) < 0.16


def test_the_first_draws_of_neighbouring_seeds_are_spread_out():
    firsts = torch.stack([stream(seed, "views", 0, count=1) for seed in range(500)]).squeeze(1)
    assert abs(firsts.mean()) < 0.2 and 0.85 < firsts.std() < 1.15
    assert abs(torch.corrcoef(torch.stack([firsts[:-1], firsts[1:]]))[0, 1]) < 0.2


@pytest.mark.parametrize("hash_seed", ["1", "4242"])
def test_another_process_with_another_hash_seed_gets_the_same_stream(hash_seed):
    script = (
        "import torch\n"
        "from scdd.seeding import generator\n"
        "print(torch.rand(4, dtype=torch.float64, generator=generator(5, 'views', 1, 2)).tolist())"
    )
    root = str(Path(scdd.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    answer = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    here = torch.rand(4, dtype=torch.float64, generator=generator(5, "views", 1, 2))
    assert answer.strip() == str(here.tolist())


def test_a_generator_lives_on_the_device_asked_for():
    assert generator(0, "views").device == torch.device("cpu")
    assert generator(0, "views", device=torch.device("cpu")).device.type == "cpu"


def test_a_seeded_block_initialises_alike_and_gives_the_state_back():
    before = torch.get_rng_state()
    weights = []
    for _ in range(2):
        with seeded(0, "init", 3):
            weights.append(nn.Linear(4, 4).weight)
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(5)
        before = torch.get_rng_state()
    assert torch.equal(weights[0], weights[1])
    with seeded(0, "init", 4):
        assert not torch.equal(nn.Linear(4, 4).weight, weights[0])


def test_a_seeded_block_gives_the_state_back_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="stop"), seeded(0, "init"):
        torch.rand(5)
        raise RuntimeError("stop")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_seeded_block_follows_the_generator_of_the_same_arguments():
    with seeded(9, "dropout", 1):
        inside = torch.rand(6)
    assert torch.equal(inside, torch.rand(6, generator=generator(9, "dropout", 1)))
