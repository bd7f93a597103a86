"""Pre-training on pairs and the linear probe, in seconds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from scdd.checkpoint import Checkpoint
from scdd.config.condense_pairs import LinearProbeConfig, PretrainConfig
from scdd.errors import RunError
from scdd.probing import features
from scdd.stages.pretrain import linear_probe, new_network, pretrain
from tests.bilevel.tiny_pairs import CPU, DIM, SIZE, source, teacher


def config(**changes: Any) -> PretrainConfig:
    base = {"arch": "convnet_krr_w32", "epochs": 6, "batch": 8, "lr": 0.05}
    return PretrainConfig.model_validate(base | changes)


def pairs(count: int = 17) -> tuple[Tensor, Tensor]:
    images = (source(count).images.float() / 255 - 0.5) / 0.25
    return images, teacher()(images)


def error(net: Any) -> float:
    images, targets = pairs()
    with torch.no_grad():
        return float((net(images) - targets).square().mean())


def test_a_network_learns_the_targets():
    fresh = new_network("convnet_krr_w32", SIZE, DIM, seed=0).eval()
    assert error(pretrain(config(epochs=60), *pairs(), 0, CPU)) < 0.2 * error(fresh)


def test_one_full_batch_epoch_is_one_step_of_sgd_on_the_mean_squared_error():
    cfg, (images, targets) = config(epochs=1, batch=100, weight_decay=0.1), pairs()
    net = pretrain(cfg, images, targets, 0, CPU)
    twin: Any = new_network("convnet_krr_w32", SIZE, DIM, 0).train()
    loss = (twin(images) - targets).square().sum() / targets.numel()
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    for found, start, gradient in zip(net.parameters(), twin.parameters(), gradients, strict=True):
        expected = start - 0.05 * (gradient + 0.1 * start)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_the_seed_decides_everything():
    first, again, other = (pretrain(config(), *pairs(), seed, CPU) for seed in (0, 0, 1))
    ours, theirs = first.state_dict(), again.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_killed_after_any_epoch_it_goes_on_bit_for_bit(tmp_path: Path):
    whole = pretrain(config(), *pairs(), 0, CPU).state_dict()

    class Killed(Exception):
        pass

    for epochs in range(1, 6):
        checkpoint, notes = Checkpoint(tmp_path / f"{epochs}.pt", 0), []

        def advance(note: str, notes: list[str] = notes, last: int = epochs) -> None:
            notes.append(note)
            if len(notes) > last:
                raise Killed

        with pytest.raises(Killed):
            pretrain(config(), *pairs(), 0, CPU, checkpoint, advance)
        state = checkpoint.load()
        assert state is not None and state["epoch"] == epochs
        found = pretrain(config(), *pairs(), 0, CPU, checkpoint).state_dict()
        assert all(torch.equal(found[name], whole[name]) for name in whole)


@pytest.mark.parametrize("count", [16, 17, 18, 1])
def test_the_last_batch_is_never_one_image_beside_others(count: int):
    # With BatchNorm a lonely image would be fatal for some nets, and poor for all.
    found = pretrain(config(epochs=1), *pairs(count), 0, CPU)
    assert all(p.isfinite().all() for p in found.parameters())


def test_a_diverging_training_ends_in_one_sentence():
    with pytest.raises(RunError, match="lower its learning rate"):
        pretrain(config(lr=1e20), *pairs(), 0, CPU)


def test_a_network_that_diverged_in_its_last_step_has_no_score():
    net: Any = pretrain(config(lr=1e20, epochs=1, batch=64), *pairs(8), 0, CPU)
    with pytest.raises(RunError, match=r"^linear probe: .*; lower the learning rate of pre-train"):
        linear_probe(LinearProbeConfig(), net.trunk, source(20), source(20), 0, CPU)


def test_a_probe_that_diverges_has_no_score():
    trunk: Any = new_network("convnet_krr_w32", SIZE, DIM, 0).trunk
    cfg = LinearProbeConfig(solver="sgd", iterations=20, lr=3e38, momentum=0.99)
    with pytest.raises(RunError, match=r"^linear probe: the classifier by sgd .*lower the learn"):
        linear_probe(cfg, trunk, source(40), source(40), 0, CPU)


@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_the_linear_probe_is_as_good_as_that_of_scikit_learn(solver: str):
    train, val = source(200), source(200, seed=1)
    for seen in (train, val):  # Without corners that are brighter: some images are hard.
        seen.images = (seen.images * 0.5 + torch.randint(0, 128, seen.images.shape)).to(torch.uint8)
    trunk: Any = new_network("convnet_krr_w32", SIZE, DIM, 0).trunk
    changes = {"solver": solver, "iterations": 300, "batch": 64, "l2": 1e-3}
    cfg = LinearProbeConfig.model_validate(changes)
    found = linear_probe(cfg, trunk, train, val, 0, CPU)
    x, new = (features(trunk, seen, CPU).numpy() for seen in (train, val))
    oracle = LogisticRegression(max_iter=2000, C=10).fit(x, train.labels.numpy())
    assert found.top1 == pytest.approx(100 * oracle.score(new, val.labels.numpy()), abs=5)
    assert found.top5 == 100


def test_the_probe_leaves_the_trunk_as_it_is_and_is_repeatable():
    train, val = source(64), source(40, seed=1)
    trunk: Any = new_network("convnet_krr_w32", SIZE, DIM, 0).trunk
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    cfg = LinearProbeConfig(iterations=20, batch=16)
    first, again = (linear_probe(cfg, trunk, train, val, 0, CPU) for _ in range(2))
    assert first == again
    assert all(torch.equal(before[name], now) for name, now in trunk.state_dict().items())
