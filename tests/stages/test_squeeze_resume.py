"""Killed and resumed bit for bit, and epochs kept on the way."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scdd.checkpoint import Checkpoint
from scdd.config.objectives import MocoV2Config, SupervisedConfig, SwavConfig
from scdd.config.squeeze import SqueezeConfig
from scdd.datasets import ResidentSource
from scdd.datasets.sources import Request
from scdd.objectives import Objective, create_objective
from tests.stages.conftest import CLASSES, SIZE
from tests.stages.small_squeeze import MakeSource, assert_equal, copied, run, settings


class Killed(Exception):
    """Stands for a kill."""


@dataclass(eq=False)
class Mortal(ResidentSource):
    """A source whose reader is killed after some batches."""

    batches_left: int = 0

    def crops(self, requests: Iterable[Request]) -> Iterator[tuple[Tensor, ...]]:
        for crops in super().crops(requests):
            if self.batches_left == 0:
                raise Killed
            self.batches_left -= 1
            yield crops


def mortal(source: ResidentSource, batches: int) -> Mortal:
    return Mortal(source.images, source.labels, source.classes, source.mean, source.std, batches)


def assert_resumed_bit_for_bit(
    cfg: SqueezeConfig, train: ResidentSource, val: ResidentSource, batches: int, file: Path
) -> None:
    whole, _ = run(cfg, train, val)
    checkpoint = Checkpoint(file, 0)
    with pytest.raises(Killed):
        run(cfg, mortal(train, batches), val, checkpoint=checkpoint)
    state = checkpoint.load()
    assert state is not None and state["step"] == batches
    resumed, _ = run(cfg, train, val, checkpoint=checkpoint)
    # Queue, pointer and key encoder too.
    assert_equal(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize(
    ("batches", "optimizer"),
    [(1, "sgd"), (4, "adamw"), (6, "lars"), (11, "adamw"), (7, "sgd")],
)
def test_killed_after_any_batch_it_goes_on_to_the_same_state_bit_for_bit(
    batches: int, optimizer: str, make_source: MakeSource, tmp_path: Path
):
    # 34 images in batches of 8: four steps an epoch, twelve in all.
    train, val = make_source(34), make_source(8, seed=1)
    cfg = settings(optimizer=optimizer, warmup_epochs=1, clip=0.5)
    assert_resumed_bit_for_bit(cfg, train, val, batches, tmp_path / "c.pt")


@pytest.mark.parametrize(
    ("objective", "views"),
    [
        (
            SwavConfig(dim=8, hidden=16, prototypes=8, queue=16, queue_from_epoch=1),
            [{"count": 2}, {"count": 2, "crop_scale": [0.1, 0.4]}],
        ),
        (SupervisedConfig(), [{"count": 1}]),
    ],
)
def test_other_objectives_with_other_numbers_of_views_go_on_bit_for_bit_too(
    objective: Any, views: list[Any], make_source: MakeSource, tmp_path: Path
):
    train, val = make_source(34), make_source(8, seed=1)
    cfg = settings(objective=objective, views=views)
    assert_resumed_bit_for_bit(cfg, train, val, 7, tmp_path / "c.pt")


def test_dropout_in_the_backbone_goes_on_bit_for_bit(make_source: MakeSource, tmp_path: Path):
    cfg = settings(arch="mobilenet_v3_large", epochs=1, objective=MocoV2Config(dim=8, queue=16))
    train, val = make_source(24), make_source(8, seed=1)
    assert_resumed_bit_for_bit(cfg, train, val, 1, tmp_path / "c.pt")
    backbone = create_objective(cfg, SIZE, CLASSES, 24).backbone.train()
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    drops = [module for module in backbone.modules() if isinstance(module, nn.Dropout)]
    assert drops and not torch.equal(backbone(x), backbone(x)), "nothing was dropped"


def test_the_loss_of_an_epoch_is_logged_the_same_whether_it_was_cut_or_not(
    make_source: MakeSource, tmp_path: Path
):
    train, val, cfg = make_source(34), make_source(8, seed=1), settings()
    _, whole = run(cfg, train, val)
    checkpoint = Checkpoint(tmp_path / "c.pt", 0)
    with pytest.raises(Killed):
        run(cfg, mortal(train, 6), val, checkpoint=checkpoint)
    _, rest = run(cfg, train, val, checkpoint=checkpoint)
    assert [line["epoch"] for line in rest] == [2, 3]
    for line, wanted in zip(rest, whole[1:], strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=1e-6)


def test_chosen_epochs_are_kept_as_they_are_then(make_source: MakeSource, tmp_path: Path):
    train, val = make_source(34), make_source(8, seed=1)
    cfg, kept = settings(keep_epochs=(1, 3)), {}

    def keep(epoch: int, objective: Objective) -> None:
        kept[epoch] = copied(objective.state_dict())

    whole, _ = run(cfg, train, val, keep=keep)
    assert list(kept) == [1, 3]
    assert_equal(kept[3], whole.state_dict())
    # The state after the four steps of the first epoch, as a kill leaves it.
    first, checkpoint = kept[1], Checkpoint(tmp_path / "c.pt", 0)
    with pytest.raises(Killed):
        run(cfg, mortal(train, 4), val, checkpoint=checkpoint)
    state = checkpoint.load()
    assert state is not None
    assert_equal(first, state["objective"])
    kept.clear()
    run(cfg, train, val, checkpoint=checkpoint, keep=keep)
    assert list(kept) == [3], "the first epoch was kept before the kill"
    assert_equal(kept[3], whole.state_dict())


def test_keeping_epochs_changes_nothing(make_source: MakeSource):
    train, val = make_source(34), make_source(8, seed=1)
    kept, _ = run(settings(keep_epochs=(1, 2)), train, val)
    alone, _ = run(settings(), train, val)
    assert_equal(kept.state_dict(), alone.state_dict())
