"""Distribution matching against a float64 loop over classes and images, kills, refusals."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scdd.augment import draw_dsa, dsa
from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.condense import CondenseConfig
from scdd.datasets import ResidentSource
from scdd.errors import ConfigError, RunError
from scdd.models import create_model
from scdd.seeding import generator
from scdd.stages.condense import check_embedding, class_mean_loss, condense, random_network
from tests.stages.conftest import CLASSES, CPU, MEAN, SIZE, STD
from tests.stages.small_recovery import Killed

MakeSource = Callable[..., ResidentSource]
IPC = 2
FLIPLESS = ("colour", "crop", "cutout", "scale", "rotate")


def settings(**changes: Any) -> CondenseConfig:
    return CondenseConfig(**({"iterations": 4, "batch": 6} | changes))


def condensed(
    cfg: CondenseConfig,
    source: ResidentSource,
    start: Tensor | None = None,
    seed: int = 0,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    log: Callable[..., None] = lambda **values: None,
) -> Tensor:
    return condense(cfg, source, IPC, SIZE, start, seed, CPU, checkpoint, log)


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.entries: list[dict[str, float]] = []

    def __call__(self, **values: float) -> None:
        self.entries.append(values)


def first_images(source: ResidentSource) -> Tensor:
    """The first two images of every class, rank-major: labels of the source go 0, 1, 2, 3, 0 .."""
    return source.images[: CLASSES * IPC]


def in_pixel_space(values: Tensor, inverse: bool = False) -> Tensor:
    """Normalise [0, 1], or undo that, in the precision of `values`."""
    mean, std = (torch.tensor(each, dtype=values.dtype).view(3, 1, 1) for each in (MEAN, STD))
    return values * std + mean if inverse else (values - mean) / std


def loss_of_loops(net: nn.Module, real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Sum over classes and axes of squared differences of means, an image at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for theirs, ours in zip(real, synthetic, strict=True):
        means = [sum(net(image[None])[0] for image in own) / len(own) for own in (theirs, ours)]
        total = total + sum((a - b) ** 2 for a, b in zip(*means, strict=True))
    return total


def network(seed: int = 0) -> nn.Module:
    return random_network("convnet", SIZE, seed, 0).double()


def images(count: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, SIZE, SIZE, generator=draw, dtype=torch.float64)


def test_the_loss_and_its_gradient_are_those_of_a_loop_over_classes_and_images():
    net, counts = network(), [5, 3, 4]
    real, synthetic = images(12), images(6, seed=1).requires_grad_(True)
    loss = class_mean_loss(net, real, counts, synthetic, 2)
    truth = loss_of_loops(net, real.split(counts), synthetic.split(2))
    torch.testing.assert_close(loss, truth)
    (gradient,), (expected,) = (torch.autograd.grad(each, synthetic) for each in (loss, truth))
    torch.testing.assert_close(gradient, expected)


def test_the_gradient_is_that_of_finite_differences():
    net, real, synthetic = network(), images(6), images(4, seed=1).requires_grad_(True)

    def loss(x: Tensor) -> Tensor:
        return class_mean_loss(net, real, [3, 3], x, 2)

    (gradient,) = torch.autograd.grad(loss(synthetic), synthetic)
    for seed in range(5):
        direction = images(4, seed=10 + seed)
        ahead, behind = (loss(synthetic.detach() + step * direction) for step in (1e-6, -1e-6))
        slope = ((ahead - behind) / 2e-6).item()
        assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-5)


def test_the_real_images_get_no_gradient():
    real = images(6).requires_grad_(True)
    class_mean_loss(network(), real, [3, 3], images(4).requires_grad_(True), 2).backward()
    assert real.grad is None


def reference(cfg: CondenseConfig, source: ResidentSource, start: Tensor, seed: int) -> Tensor:
    """The algorithm in float64, classes one after the other: pixels in [0, 1], rank-major."""
    x = in_pixel_space(start.double() / 255)
    low, high = (in_pixel_space(torch.full((3, 1, 1), edge).double()) for edge in (0, 1))
    velocity = torch.zeros_like(x)
    for step in range(cfg.iterations):
        net = random_network(cfg.arch, SIZE, seed, step).double()
        changes = draw_dsa(cfg.dsa, CLASSES, SIZE, generator(seed, "condense.dsa", step))
        draw = generator(seed, "condense.real", step)
        x = x.detach().requires_grad_(True)
        loss = torch.zeros((), dtype=torch.float64)
        for label in range(CLASSES):
            members = [row for row in range(len(source)) if source.labels[row] == label]
            order = torch.randperm(len(members), generator=draw)[: cfg.batch].tolist()
            real = in_pixel_space(source.images[[members[at] for at in order]].double() / 255)
            theirs, ours = (
                torch.cat([dsa(image[None], changes.rows(torch.tensor([label]))) for image in own])
                for own in (real, x[label::CLASSES])
            )
            loss = loss + loss_of_loops(net, [theirs], [ours])
        (gradient,) = torch.autograd.grad(loss, x)
        velocity = cfg.momentum * velocity + gradient
        x = torch.minimum(torch.maximum(x - cfg.lr * velocity, low), high)
    return in_pixel_space(x.detach(), inverse=True)


@pytest.mark.parametrize("operations", [(), FLIPLESS], ids=["plain", "augmented"])
def test_the_images_are_those_of_the_reference(make_source: MakeSource, operations: tuple):
    source, cfg = make_source(40), settings(iterations=3, lr=0.5, dsa=operations)
    start = first_images(source)
    found = condensed(cfg, source, start, seed=7)
    truth = 255 * reference(cfg, source, start, seed=7)
    assert (truth - start).abs().mean() > 3, "they have moved"
    assert ((truth > 0) & (truth < 255)).double().mean() > 0.5, "and not to the end of their range"
    off = (found.double() - truth).abs()
    assert (off <= 0.52).double().mean() > 0.99 and off.max() < 2


def test_classes_in_one_pass_are_classes_alone(make_source: MakeSource):
    source = make_source(40)
    alone, three, all_at_once = (
        condensed(settings(group=group, lr=0.5), source, first_images(source)).int()
        for group in (1, 3, None)
    )
    for together in (three, all_at_once):
        assert (together - alone).abs().max() <= 1
        assert (together == alone).double().mean() > 0.99


def test_a_class_with_fewer_images_than_a_batch_gives_all_it_has(make_source: MakeSource):
    source = make_source(40)
    scarce = source.labels != 2
    scarce[2] = True  # One image of this class.
    few = ResidentSource(source.images[scarce], source.labels[scarce], source.classes, MEAN, STD)
    cfg = settings(lr=0.5, dsa=(), iterations=3)
    found = condensed(cfg, few, first_images(source))
    truth = 255 * reference(cfg, few, first_images(source), seed=0)
    assert ((found.double() - truth).abs() <= 0.52).double().mean() > 0.99


def test_the_order_is_rank_major_and_a_tiny_step_gives_the_start_back(make_source: MakeSource):
    source = make_source(40)
    assert torch.equal(
        condensed(settings(lr=1e-12), source, first_images(source)), first_images(source)
    )


class KilledAfter(Checkpoint):
    """Stands for a process that is killed when it has saved some states."""

    def __init__(self, path: Path, states: int) -> None:
        super().__init__(path, 0)
        self.left = states

    def save(self, state: dict[str, Any]) -> None:
        super().save(state)
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.mark.parametrize("start", ["real", "noise"])
def test_a_killed_run_ends_with_the_same_bits(start: str, make_source: MakeSource, tmp_path: Path):
    source, cfg = make_source(40), settings(iterations=9, lr=0.5)
    begun = first_images(source) if start == "real" else None
    whole_log, log = Log(), Log()
    whole = condensed(cfg, source, begun, log=whole_log)
    path = tmp_path / "checkpoint"
    for states in (3, 1, 4):
        with pytest.raises(Killed):
            condensed(cfg, source, begun, checkpoint=KilledAfter(path, states), log=log)
    resumed = condensed(cfg, source, begun, checkpoint=Checkpoint(path, 0), log=log)
    assert torch.equal(resumed, whole)
    assert log.entries == whole_log.entries, "no iteration is made twice"


def test_the_seed_decides(make_source: MakeSource):
    source, cfg = make_source(40), settings(lr=0.5)
    one, same, other = (
        condensed(cfg, source, first_images(source), seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("lr", [0.5, 300.0])
def test_images_are_valid_pixels_whatever_the_rate(lr: float, make_source: MakeSource):
    found = condensed(settings(lr=lr, iterations=6), make_source(40))
    assert found.dtype == torch.uint8 and found.shape == (CLASSES * IPC, 3, SIZE, SIZE)
    shares = found.float() / 255
    assert 0.3 < shares.mean() < 0.7, "nothing has wrapped around"


class Counting(ResidentSource):
    """Notes which rows are read."""

    asked: list[Tensor]

    def read(self, indices: Tensor, size: int | None = None) -> Tensor:
        self.asked.append(indices)
        return super().read(indices, size)


def test_noise_reads_the_real_batches_and_nothing_else(make_source: MakeSource):
    source = make_source(40)
    counting = Counting(source.images, source.labels, source.classes, MEAN, STD)
    counting.asked = []
    condensed(settings(iterations=3, batch=6, group=1), counting)
    assert len(counting.asked) == 3 * CLASSES
    for number, rows in enumerate(counting.asked):
        assert len(set(rows.tolist())) == 6, "none twice"
        assert set(source.labels[rows].tolist()) == {number % CLASSES}
    assert len({tuple(rows.tolist()) for rows in counting.asked}) == 3 * CLASSES


def test_noise_is_gaussian_in_normalised_space_and_clipped_to_pixels(make_source: MakeSource):
    found = condensed(settings(lr=1e-12, iterations=1), make_source(40)).float() / 255
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        values = found[:, channel]
        truth = (mean + std * torch.randn(100_000)).clamp(0, 1)
        assert values.mean().item() == pytest.approx(truth.mean().item(), abs=0.03)
        assert values.std().item() == pytest.approx(truth.std().item(), abs=0.03)


@pytest.mark.parametrize("start", ["real", "noise"])
def test_means_come_closer_in_networks_that_were_never_seen(start: str, make_source: MakeSource):
    source = make_source(80)
    begun = first_images(source) if start == "real" else None
    before, after = (
        condensed(settings(iterations=iterations, batch=20, lr=lr), source, begun)
        for iterations, lr in ((1, 1e-12), (30, 0.1))
    )

    def distance(pixels: Tensor) -> float:
        real, ours = (in_pixel_space(each.double() / 255) for each in (source.images, pixels))
        means = [
            [net(each[label::CLASSES]).mean(dim=0) for each in (real, ours)]
            for net in (network(101), network(102))
            for label in range(CLASSES)
        ]
        return sum((one - other).square().sum().item() for one, other in means)

    assert distance(after) < 0.75 * distance(before)


def test_the_loss_is_logged_now_and_then(make_source: MakeSource):
    log = Log()
    condensed(settings(iterations=53, batch=1, lr=0.1), make_source(8), log=log)
    assert [entry["iteration"] for entry in log.entries] == [1, 2, 5, 10, 20, 50, 53]
    assert all(math.isfinite(entry["loss"]) and entry["loss"] > 0 for entry in log.entries)


def test_a_rate_that_is_too_high_is_one_sentence(make_source: MakeSource):
    with pytest.raises(RunError) as caught:
        condensed(settings(lr=1e30, iterations=1, dsa=()), make_source(40))
    assert str(caught.value) == (
        "condense: the images end with every pixel at the end of its range; lower condense.lr "
        "(now 1e+30) and run again with --redo condense"
    )


def test_a_loss_that_is_no_number_is_one_sentence(make_source: MakeSource):
    source = make_source(40)
    broken = ResidentSource(source.images, source.labels, source.classes, MEAN, (1e-30, 1.0, 1.0))
    with pytest.raises(RunError) as caught:
        condensed(settings(), broken)
    sentence = str(caught.value)
    assert sentence.startswith("condense: the loss is ") and " at iteration 1; lower" in sentence
    assert sentence.endswith("condense.lr (now 1) and run again with --redo condense")


@pytest.mark.parametrize("arch", ["convnet_bn", "resnet8"])
def test_networks_with_batchnorm_are_refused(arch: str, make_source: MakeSource):
    with pytest.raises(ConfigError) as caught:
        condensed(settings(arch=arch), make_source(40))
    assert str(caught.value) == (
        f"condense.arch = {arch} has BatchNorm layers, which know nothing in an untrained network "
        "but the batch, where classes would mix; choose a network without, such as convnet"
    )


def test_an_unknown_network_is_named(make_source: MakeSource):
    with pytest.raises(ConfigError, match=r"^condense\.arch: unknown architecture 'convnett'"):
        check_embedding("convnett", SIZE)


def test_networks_embed_as_the_features_before_a_classifier_and_differ_by_iteration():
    x = images(3)
    first, again, second = (
        random_network("convnet", SIZE, 5, iteration).double() for iteration in (0, 0, 1)
    )
    assert torch.equal(first(x), again(x)) and not torch.equal(first(x), second(x))
    whole = create_model("convnet", 10, SIZE).double()
    missing = whole.load_state_dict(first.state_dict(), strict=False)
    assert missing.missing_keys == ["classifier.weight", "classifier.bias"]
    assert not missing.unexpected_keys
    torch.testing.assert_close(whole.classifier(first(x)), whole(x))
    assert first(x).shape == (3, whole.feature_dim)
    assert not any(parameter.requires_grad for parameter in first.parameters())
