"""Recovery from several teachers that take turns, against the float64 loop that changes its net."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.recover import RecoverConfig
from scdd.recovery import RecoveryLoss
from scdd.seeding import generator
from scdd.stages.recover import Batch, recover
from tests.stages import reference_recover as reference
from tests.stages.conftest import CPU, MEAN, SIZE, STD, random_images
from tests.stages.small_recovery import PLAIN, Killed, batch_of, settings

MakeTeacher = Callable[..., nn.Module]
ARCHS = ("resnet8", "resnet14", "resnet8x2")


class InTurn(nn.Module):
    """Networks as one: the t-th pass is of the network t modulo their number."""

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets, self.passes = nn.ModuleList(nets), 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.nets[(self.passes - 1) % len(self.nets)](x)


def recovered(
    cfg: RecoverConfig,
    losses: Sequence[RecoveryLoss],
    *group: Batch,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    kill_at: int = 0,
    log: Callable[..., None] = lambda **values: None,
) -> Tensor:
    """Recover a group, eager on the CPU; raise in iteration `kill_at`."""
    done = 0

    def advance(note: str) -> None:
        nonlocal done
        done += 1
        if done == kill_at:
            raise Killed

    return recover(cfg, losses, group, SIZE, MEAN, STD, 0, CPU, checkpoint, advance, log)


def losses_of(
    cfg: RecoverConfig, make_teacher: MakeTeacher, count: int, groups: int = 1
) -> list[RecoveryLoss]:
    return [RecoveryLoss(make_teacher(arch), cfg, groups, False) for arch in ARCHS[:count]]


@pytest.mark.parametrize("count", [2, 3])
def test_iteration_t_is_of_the_teacher_t_modulo_their_number(
    count: int, tmp_path: Path, make_teacher: MakeTeacher
):
    cfg, steps = settings(weight_decay=0.02), 7
    checkpoint = Checkpoint(tmp_path / "c.pt", 0)
    losses = losses_of(cfg, make_teacher, count)
    with pytest.raises(Killed):
        recovered(cfg, losses, batch_of(4), checkpoint=checkpoint, kill_at=steps + 1)
    state = checkpoint.load()
    assert state is not None and state["step"] == steps

    noise = torch.randn(4, 3, SIZE, SIZE, generator=generator(0, "recover", 0)).double()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    truth, _ = reference.recover(
        InTurn([copy.deepcopy(make_teacher(arch)).double() for arch in ARCHS[:count]]),
        noise,
        batch_of(4).labels,
        [PLAIN] * steps,
        total=cfg.iterations,
        lr=cfg.lr,
        betas=cfg.betas,
        weight_decay=cfg.weight_decay,
        alpha=cfg.alpha,
        first=cfg.first_bn_multiplier,
        low=-mean / std,
        high=(1 - mean) / std,
    )
    # Adam divides by the size of the gradient, so where that is tiny float32 may turn its sign.
    off = (state["images"] - noise) - (truth - noise)
    assert off.norm() / (truth - noise).norm() < 1e-3


def test_whole_rounds_are_reported_with_the_losses_and_the_layers_of_every_teacher(
    make_teacher: MakeTeacher,
):
    cfg, lines = settings(iterations=53), []
    losses = losses_of(cfg, make_teacher, 3)
    recovered(cfg, losses, batch_of(4), log=lambda **values: lines.append(values))
    rounds = [(line["iteration"], line["teacher"]) for line in lines if "batch" in line]
    # Iterations are counted from 1 in the log, turns from 0.
    early, late = [*range(1, 7), 13, 14, 15, 28, 29, 30], [48, 49, 50, 51, 52, 53]
    assert rounds == [(step, (step - 1) % 3) for step in early + late]
    counts = [
        sum(isinstance(module, nn.BatchNorm2d) for module in make_teacher(arch).modules())
        for arch in ARCHS
    ]
    layers = [(line["teacher"], len(line["layers"])) for line in lines if "layers" in line]
    assert layers == [(turn, counts[turn]) for _, turn in rounds]
    assert len(set(counts)) == 3


@pytest.mark.parametrize("kill_at", [1, 2, 3, 6, 7, 12])
def test_killed_in_any_turn_it_goes_on_to_bit_identical_images(
    kill_at: int, tmp_path: Path, make_teacher: MakeTeacher
):
    cfg = settings(crop="sample", roll=2, start="real", merges=1, learn_weights=True)
    group = [batch_of(4, index, random_images(4, seed=index)) for index in (1, 2)]

    def fresh() -> list[RecoveryLoss]:
        return losses_of(cfg, make_teacher, 2, groups=2)

    whole = recovered(cfg, fresh(), *group)
    checkpoint = Checkpoint(tmp_path / "c.pt", 0)
    with pytest.raises(Killed):
        recovered(cfg, fresh(), *group, checkpoint=checkpoint, kill_at=kill_at)
    assert checkpoint.path is not None and checkpoint.path.exists() is (kill_at > 1)
    assert torch.equal(recovered(cfg, fresh(), *group, checkpoint=checkpoint), whole)


def test_what_a_teacher_learns_moves_in_its_turns_alone(make_teacher: MakeTeacher):
    for iterations, moved in ((1, [True, False, False]), (2, [True, True, False])):
        cfg = settings(iterations=iterations, learn_weights=True)
        losses = losses_of(cfg, make_teacher, 3)
        recovered(cfg, losses, batch_of(4))
        scales = [loss.log_scale for loss in losses]
        assert [bool(scale.detach().any()) for scale in scales if scale is not None] == moved
