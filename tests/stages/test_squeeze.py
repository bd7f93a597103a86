"""Pre-training: resumed bit for bit, learning, and the sentences when it cannot go on."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from scdd.augment import colour, draw_views, resized_crop
from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.objectives import MocoV2Config, SupervisedConfig, SwavConfig
from scdd.config.squeeze import SqueezeConfig
from scdd.config.views import ViewConfig
from scdd.datasets import ResidentSource
from scdd.datasets.sources import Request
from scdd.errors import DataError, RunError
from scdd.objectives import Batch, Objective, create_objective
from scdd.seeding import generator, seeded
from scdd.stages.squeeze import Keep, squeeze
from tests.stages.conftest import CLASSES, CPU, SIZE

MakeSource = Callable[..., ResidentSource]
Line = dict[str, Any]


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


def settings(**changes: Any) -> SqueezeConfig:
    base: dict[str, Any] = {
        "arch": "resnet8",
        "objective": MocoV2Config(dim=8, queue=32, key_splits=2),
        "epochs": 3,
        "batch": 8,
        "lr": 0.05,
        "knn_every": 0,
        "views": [ViewConfig(count=2, crop_scale=(0.5, 1.0), blur=0.5)],
    }
    return SqueezeConfig.model_validate(base | changes)


def run(
    cfg: SqueezeConfig,
    train: ResidentSource,
    val: ResidentSource,
    seed: int = 0,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    keep: Keep = lambda epoch, objective: None,
) -> tuple[Objective, list[Line]]:
    """Squeeze; return the objective and what was logged."""
    lines: list[Line] = []
    objective = squeeze(
        cfg, train, val, SIZE, seed, CPU, checkpoint, lambda stage, **v: lines.append(v), keep
    )
    return objective, lines


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


# Killed and resumed


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


# Training


def move(weight: nn.Parameter, memory: Tensor, cfg: SqueezeConfig, lr: float) -> None:
    """One step of SGD or LARS (arXiv:1708.03888, Algorithm 1) on one tensor, by the formula."""
    gradient, matrix = weight.grad, weight.ndim > 1
    assert gradient is not None
    if cfg.clip and gradient.norm() > cfg.clip:
        gradient = gradient * (cfg.clip / gradient.norm())
    decays = matrix or (cfg.decay == "all" and cfg.optimizer != "lars")
    decay = cfg.weight_decay if decays else 0.0
    trust: Tensor | float = 1.0
    if cfg.optimizer == "lars" and matrix:
        trust = 0.001 * weight.norm() / (gradient.norm() + decay * weight.norm())
    memory.mul_(cfg.momentum).add_(trust * (gradient + decay * weight))
    weight.sub_(lr * memory)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"warmup_epochs": 1, "final_lr": 0.01},
        {"final_lr": 0.02, "momentum": 0.5, "clip": 0.02},
        {"weight_decay": 0.3, "decay": "matrices"},
        {"optimizer": "lars", "lr": 3.0, "weight_decay": 0.3, "collapse_below": 0.0},
        {"optimizer": "lars", "lr": 3.0, "weight_decay": 0.0, "collapse_below": 0.0},
    ],
    ids=str,
)
def test_the_loop_is_the_plain_algorithm_with_new_views_at_every_step(
    changes: dict[str, Any], make_source: MakeSource
):
    train, seed = make_source(34), 3
    cfg = settings(**({"weight_decay": 0.1} | changes))
    found, _ = run(cfg, train, make_source(8, seed=1), seed)

    with seeded(seed, "squeeze.init"):
        objective = create_objective(cfg, SIZE, CLASSES, 34).train()
    trained = [weight for weight in objective.parameters() if weight.requires_grad]
    memories = [torch.zeros_like(weight) for weight in trained]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (train.mean, train.std))
    before = copied(objective.backbone.state_dict())
    for step in range(cfg.epochs * 4):
        if step % 4 == 0:
            order = torch.randperm(34, generator=generator(seed, "squeeze.order", step // 4))
        rows = order[8 * (step % 4) :][:8]
        views = []
        for drawn in draw_views(cfg.views, 8, SIZE, generator(seed, "squeeze.views", step)):
            boxes = drawn.crop.boxes(torch.tensor([[SIZE, SIZE]]))
            crops = resized_crop(train.images[rows] / 255, boxes, SIZE, drawn.crop.flip)
            views.append((colour(crops, drawn.colour) - mean) / std)
        draw = generator(seed, "squeeze.objective", step)
        objective.zero_grad()
        objective(Batch(tuple(views), train.labels[rows], rows, draw)).value.backward()
        share = (step / 4 - cfg.warmup_epochs) / (cfg.epochs - cfg.warmup_epochs)
        factor = step / 4 / cfg.warmup_epochs if share < 0 else (1 + math.cos(math.pi * share)) / 2
        lr = cfg.final_lr + factor * (cfg.lr - cfg.final_lr)
        with torch.no_grad():
            for weight, memory in zip(trained, memories, strict=True):
                move(weight, memory, cfg, lr)
    wanted = objective.backbone.state_dict()
    for name, mine in found.backbone.state_dict().items():
        torch.testing.assert_close(mine, wanted[name], rtol=1e-3, atol=1e-4, msg=name)
    moved = (before["conv1.weight"] - wanted["conv1.weight"]).norm()
    assert moved > 0.01 * before["conv1.weight"].norm(), "the weights hardly moved"


def test_the_same_seed_gives_the_same_weights_and_another_others(make_source: MakeSource):
    train, val, cfg = make_source(32), make_source(8, seed=1), settings(epochs=1)
    torch.manual_seed(1)
    first, _ = run(cfg, train, val, seed=4)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second, _ = run(cfg, train, val, seed=4)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not ours to move"
    assert_equal(first.state_dict(), second.state_dict())
    other, _ = run(cfg, train, val, seed=5)
    assert not torch.equal(*(net.get_parameter("backbone.conv1.weight") for net in (first, other)))


def test_the_loss_falls_once_the_queue_holds_real_keys(make_source: MakeSource):
    cfg = settings(
        epochs=6,
        batch=16,
        optimizer="adamw",
        lr=0.003,
        objective=MocoV2Config(dim=16, queue=64, momentum=0.9),
        views=[ViewConfig(count=2, crop_scale=(0.8, 1.0), flip=0.0)],
    )
    _, lines = run(cfg, make_source(64), make_source(8, seed=1))
    assert [line["epoch"] for line in lines] == list(range(1, 7))
    # In the first epoch the queue still holds random keys, which are easy to tell apart.
    assert lines[-1]["loss"] < lines[1]["loss"] - 0.4


def test_steps_and_neighbours_are_logged_when_asked_and_at_the_end(make_source: MakeSource):
    train, val = make_source(34), make_source(8, seed=1)
    _, lines = run(settings(epochs=5, knn_every=2), train, val)
    assert [line["epoch"] for line in lines if "knn_top1" in line] == [2, 4, 5]
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20]
    assert all(0 < line["spread"] < 1.1 for line in lines)
    assert all(1 <= line["effective_rank"] <= 8 for line in lines)
    assert all(0 <= line["knn_top1"] <= 100 for line in lines if "knn_top1" in line)
    _, lines = run(settings(epochs=2), train, val)
    assert not any("knn_top1" in line for line in lines)


def test_the_logged_neighbours_are_those_of_the_backbone(make_source: MakeSource):
    train, val = make_source(40), make_source(40, seed=1)
    wrong = ResidentSource(
        val.images, val.labels.roll(10) // 2 + val.labels // 2, val.classes, val.mean, val.std
    )
    squeezed, lines = run(settings(epochs=2, knn_every=2, knn_k=3), train, wrong)
    backbone = squeezed.backbone.eval()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (train.mean, train.std))
    with torch.no_grad():
        x, test = (backbone((s.images / 255 - mean) / std).double() for s in (train, wrong))
    model = KNeighborsClassifier(
        n_neighbors=3, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.1)
    )
    truth = model.fit(x, train.labels).score(test, wrong.labels)
    assert 0 < truth < 1 and lines[-1]["knn_top1"] == pytest.approx(100 * truth)


def test_what_is_monitored_changes_nothing(make_source: MakeSource):
    train, val = make_source(34), make_source(8, seed=1)
    watched, _ = run(settings(knn_every=1), train, val)
    alone, _ = run(settings(), train, val)
    assert_equal(watched.state_dict(), alone.state_dict())


def test_the_backbone_has_features_and_no_head(make_source: MakeSource):
    backbone = run(settings(epochs=1), make_source(32), make_source(8, seed=1))[0].backbone
    assert backbone.num_classes == 0 and backbone.arch == "resnet8"
    assert backbone(torch.zeros(2, 3, SIZE, SIZE)).shape == (2, backbone.feature_dim)


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


def relative_change(one: nn.Module, other: nn.Module) -> float:
    mine, wanted = (torch.cat([w.flatten() for w in net.parameters()]) for net in (one, other))
    return ((mine - wanted).norm() / wanted.norm()).item()


def test_bf16_on_a_cpu_differs_but_little(make_source: MakeSource):
    train, val = make_source(34), make_source(8, seed=1)
    whole, lines = run(settings(epochs=1), train, val)
    half, rounded = run(settings(epochs=1, precision="bf16"), train, val)
    assert all(tensor.dtype != torch.bfloat16 for tensor in half.state_dict().values())
    assert 1e-6 < relative_change(half.backbone, whole.backbone) < 0.02
    assert rounded[0]["loss"] == pytest.approx(lines[0]["loss"], rel=0.01)


def test_precision_auto_is_full_on_a_cpu(make_source: MakeSource):
    train, val = make_source(34), make_source(8, seed=1)
    one, other = (run(settings(epochs=1, precision=p), train, val)[0] for p in ("auto", "fp32"))
    assert_equal(one.state_dict(), other.state_dict())


@pytest.mark.slow
def test_a_compiled_backbone_learns_the_same_and_has_the_same_names(make_source: MakeSource):
    train, val = make_source(34), make_source(34, seed=1)
    cfg = settings(epochs=2, knn_every=1)
    eager, lines = run(cfg, train, val)
    compiled, fast = run(cfg.model_copy(update={"compile": True}), train, val)
    assert eager.state_dict().keys() == compiled.state_dict().keys()
    assert relative_change(compiled.backbone, eager.backbone) < 1e-3
    for mine, wanted in zip(fast, lines, strict=True):
        assert mine["loss"] == pytest.approx(wanted["loss"], rel=1e-3)


# What cannot go on


def test_fewer_images_than_a_batch_are_refused(make_source: MakeSource):
    with pytest.raises(DataError) as caught:
        run(settings(batch=9), make_source(8), make_source(8, seed=1))
    assert str(caught.value) == (
        "squeeze.batch is 9, but the training set holds only 8 images; choose a batch of at most 8"
    )


@pytest.mark.parametrize(
    "objective", [MocoV2Config(queue=35), SwavConfig(queue=35, queue_from_epoch=0)]
)
def test_a_queue_longer_than_the_training_set_is_refused(objective: Any, make_source: MakeSource):
    with pytest.raises(DataError) as caught:
        run(settings(objective=objective), make_source(34), make_source(8, seed=1))
    assert str(caught.value) == (
        "squeeze.objective.queue is 35, but the training set holds only 34 images, so that it "
        "would hold some twice; choose a shorter queue"
    )


def refusal(
    cfg: SqueezeConfig, train: ResidentSource, checkpoint: Checkpoint = NO_CHECKPOINT
) -> str:
    """The sentence that ends a run, without the digits of a spread that hang on the processor."""
    with pytest.raises(RunError) as caught:
        run(cfg, train, train, checkpoint=checkpoint)
    return re.sub(r"(?<=spread 0\.0)[01]\d", "..", str(caught.value))


# With a warm-up the first step has a rate of 0, so it leaves a good state.
NO_NUMBER = {"warmup_epochs": 1, "objective": MocoV2Config(dim=8, queue=32, temperature=1e-3)}
# Weights go, biases stay: every image ends at the bias of the head.
COLLAPSE = {"weight_decay": 10.0, "decay": "matrices"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            NO_NUMBER | {"lr": 1e30},
            "squeeze: the loss is nan at step {step}; lower squeeze.lr (now 1e+30) and run again "
            "with --redo squeeze",
        ),
        (
            NO_NUMBER | {"lr": 3e38},
            "squeeze: a weight is no number at step {step}; lower squeeze.lr (now 3e+38) and run "
            "again with --redo squeeze",
        ),
        (
            COLLAPSE,
            "squeeze: the embeddings collapse to one point (spread 0.0.. at step {step}, below "
            "squeeze.collapse_below = 0.02); lower squeeze.lr or change squeeze.objective, and run "
            "again with --redo squeeze",
        ),
    ],
    ids=["loss", "weight", "collapse"],
)
def test_a_run_that_diverges_ends_in_one_sentence_and_keeps_the_last_good_state(
    changes: dict[str, Any], sentence: str, make_source: MakeSource, tmp_path: Path
):
    cfg, train, file = settings(**changes), make_source(34), tmp_path / "c.pt"
    checkpoint = Checkpoint(file, 0)
    found = refusal(cfg, train, checkpoint)
    state = checkpoint.load()
    assert state is not None
    good = state["step"]
    kept = f", which moves aside, but keeps, the state of step {good} in {file}"
    assert found == sentence.format(step=good + 1) + kept
    assert all(bool(tensor.isfinite().all()) for tensor in state["objective"].values())
    assert refusal(cfg, train, checkpoint) == found, "it goes on from there, to the same end"
    assert "keeps" not in refusal(cfg, train)


def test_without_a_checkpoint_a_collapse_ends_the_run_with_its_epoch_and_may_be_allowed(
    make_source: MakeSource,
):
    train = make_source(34)
    assert refusal(settings(**COLLAPSE), train).startswith(
        "squeeze: the embeddings collapse to one point (spread 0.0.. at step 8, below "
    )
    _, lines = run(settings(**COLLAPSE, collapse_below=0.0), train, train)
    assert lines[-1]["epoch"] == 3
