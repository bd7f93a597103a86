"""Pre-training: resumed bit for bit, learning, and the sentences when it cannot go on."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from scdd.augment import augment
from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.squeeze import AugmentConfig, MocoV2Config, SqueezeConfig
from scdd.datasets import ResidentSource
from scdd.errors import DataError, RunError
from scdd.objectives import create_objective
from scdd.seeding import generator, seeded
from scdd.stages.squeeze import squeeze
from tests.stages.conftest import CPU, SIZE

MakeSource = Callable[..., ResidentSource]
Line = dict[str, Any]


class Killed(Exception):
    """Stands for a kill."""


@dataclass(eq=False)
class Mortal(ResidentSource):
    """A source whose reader is killed after some batches."""

    batches_left: int = 0

    def epoch(
        self, batch: int, generator: torch.Generator, skip: int = 0, drop_last: bool = True
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for item in super().epoch(batch, generator, skip, drop_last):
            if self.batches_left == 0:
                raise Killed
            self.batches_left -= 1
            yield item


def mortal(source: ResidentSource, batches: int) -> Mortal:
    return Mortal(source.images, source.labels, source.classes, source.mean, source.std, batches)


def settings(**changes: Any) -> SqueezeConfig:
    base: dict[str, Any] = {
        "arch": "resnet8",
        "objective": MocoV2Config(dim=8, queue=32, key_splits=2),
        "epochs": 3,
        "batch": 8,
        "lr": 0.05,
        "knn_every": 0,
        "augment": AugmentConfig(crop_scale=(0.5, 1.0), blur=0.5),
    }
    return SqueezeConfig(**(base | changes))


def run(
    cfg: SqueezeConfig,
    train: ResidentSource,
    val: ResidentSource,
    seed: int = 0,
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> tuple[nn.Module, list[Line]]:
    """Squeeze; return the backbone and what was logged."""
    lines: list[Line] = []
    backbone = squeeze(
        cfg, train, val, SIZE, seed, CPU, checkpoint, lambda stage, **v: lines.append(v)
    )
    return backbone, lines


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize(
    ("batches", "optimizer"), [(1, "sgd"), (4, "adamw"), (6, "sgd"), (11, "adamw")]
)
def test_killed_after_any_batch_it_goes_on_to_the_same_weights_bit_for_bit(
    batches: int, optimizer: str, make_source: MakeSource, tmp_path: Path
):
    # 34 images in batches of 8: four steps an epoch, twelve in all.
    train, val = make_source(34), make_source(8, seed=1)
    cfg = settings(optimizer=optimizer, warmup_epochs=1)
    whole, _ = run(cfg, train, val)
    checkpoint = Checkpoint(tmp_path / "c.pt", 0)
    with pytest.raises(Killed):
        run(cfg, mortal(train, batches), val, checkpoint=checkpoint)
    state = checkpoint.load()
    assert state is not None and state["step"] == batches
    resumed, _ = run(cfg, train, val, checkpoint=checkpoint)
    assert_equal(resumed, whole)


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


def test_the_loop_is_plain_sgd_with_new_views_at_every_step(make_source: MakeSource):
    train, seed, epochs, warmup = make_source(34), 3, 3, 1
    cfg = settings(epochs=epochs, warmup_epochs=warmup, weight_decay=0.01)
    found, _ = run(cfg, train, make_source(8, seed=1), seed)

    with seeded(seed, "squeeze.init"):
        objective = create_objective(cfg, SIZE).train()
    parts = (objective.get_submodule(name) for name in ("backbone", "head"))
    trained = [parameter for part in parts for parameter in part.parameters()]
    optimizer = torch.optim.SGD(trained, lr=1.0, momentum=cfg.momentum, weight_decay=0.01)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (train.mean, train.std))
    for step in range(epochs * 4):
        if step % 4 == 0:
            order = torch.randperm(34, generator=generator(seed, "squeeze.order", step // 4))
        x = train.images[order[8 * (step % 4) :][:8]].float() / 255
        draw = generator(seed, "squeeze.views", step)
        views = [(augment(x, cfg.augment, draw) - mean) / std for _ in range(2)]
        share = (step / 4 - warmup) / (epochs - warmup)
        factor = step / 4 / warmup if step < 4 * warmup else (1 + math.cos(math.pi * share)) / 2
        optimizer.param_groups[0]["lr"] = cfg.lr * factor
        optimizer.zero_grad()
        objective(*views, draw).backward()
        optimizer.step()
    for (name, mine), wanted in zip(
        found.named_parameters(), objective.get_submodule("backbone").parameters(), strict=True
    ):
        torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-4, msg=name)


def test_the_same_seed_gives_the_same_weights_and_another_others(make_source: MakeSource):
    train, val, cfg = make_source(16), make_source(8, seed=1), settings(epochs=1)
    torch.manual_seed(1)
    first, _ = run(cfg, train, val, seed=4)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second, _ = run(cfg, train, val, seed=4)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not ours to move"
    assert_equal(first, second)
    other, _ = run(cfg, train, val, seed=5)
    assert not torch.equal(*(net.get_parameter("conv1.weight") for net in (first, other)))


def test_the_loss_falls_once_the_queue_holds_real_keys(make_source: MakeSource):
    cfg = settings(
        epochs=6,
        batch=16,
        optimizer="adamw",
        lr=0.003,
        objective=MocoV2Config(dim=16, queue=64, momentum=0.9),
        augment=AugmentConfig(crop_scale=(0.8, 1.0), flip=0.0),
    )
    _, lines = run(cfg, make_source(64), make_source(8, seed=1))
    assert [line["epoch"] for line in lines] == list(range(1, 7))
    # In the first epoch the queue still holds random keys, which are easy to tell apart.
    assert lines[-1]["loss"] < lines[1]["loss"] - 0.4


def test_steps_and_neighbours_are_logged_when_asked_and_at_the_end(make_source: MakeSource):
    train, val = make_source(20), make_source(8, seed=1)
    _, lines = run(settings(epochs=5, knn_every=2), train, val)
    assert [line["epoch"] for line in lines if "knn_top1" in line] == [2, 4, 5]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10]
    assert all(0 <= line["knn_top1"] <= 100 for line in lines if "knn_top1" in line)
    _, lines = run(settings(epochs=2), train, val)
    assert not any("knn_top1" in line for line in lines)


def test_the_logged_neighbours_are_those_of_the_backbone(make_source: MakeSource):
    train, val = make_source(40), make_source(40, seed=1)
    wrong = ResidentSource(
        val.images, val.labels.roll(10) // 2 + val.labels // 2, val.classes, val.mean, val.std
    )
    backbone, lines = run(settings(epochs=2, knn_every=2, knn_k=3), train, wrong)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (train.mean, train.std))
    with torch.no_grad():
        x, test = (backbone.eval()((s.images / 255 - mean) / std).double() for s in (train, wrong))
    model = KNeighborsClassifier(
        n_neighbors=3, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.1)
    )
    truth = model.fit(x, train.labels).score(test, wrong.labels)
    assert 0 < truth < 1 and lines[-1]["knn_top1"] == pytest.approx(100 * truth)


def test_what_is_monitored_changes_nothing(make_source: MakeSource):
    train, val = make_source(20), make_source(8, seed=1)
    watched, _ = run(settings(knn_every=1), train, val)
    alone, _ = run(settings(), train, val)
    assert_equal(watched, alone)


def test_the_backbone_has_features_and_no_head(make_source: MakeSource):
    backbone, _ = run(settings(epochs=1), make_source(16), make_source(8, seed=1))
    assert backbone.num_classes == 0 and backbone.arch == "resnet8"
    assert backbone(torch.zeros(2, 3, SIZE, SIZE)).shape == (2, backbone.feature_dim)


def test_fewer_images_than_a_batch_are_refused(make_source: MakeSource):
    with pytest.raises(DataError) as caught:
        run(settings(batch=9), make_source(8), make_source(8, seed=1))
    assert str(caught.value) == (
        "squeeze.batch is 9, but the training set holds only 8 images; choose a batch of at most 8"
    )


def test_a_loss_that_is_no_number_ends_the_run_with_what_to_lower(make_source: MakeSource):
    with pytest.raises(RunError) as caught:
        run(settings(lr=1e30), make_source(32), make_source(8, seed=1))
    assert str(caught.value).startswith("squeeze: the loss is nan in epoch ")
    assert str(caught.value).endswith(
        "lower squeeze.lr (now 1e+30) and run again with --redo squeeze"
    )
