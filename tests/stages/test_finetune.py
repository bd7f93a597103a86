"""Fine-tuning: all weights by plain SGD under a cosine, killed and resumed, in seconds."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scdd.checkpoint import Checkpoint
from scdd.config.finetune import FinetuneConfig
from scdd.errors import RunError
from scdd.stages.finetune import finetune, new_classifier
from scdd.stages.pretrain import new_network
from scdd.training import evaluate
from tests.bilevel.tiny_pairs import CPU, DIM, MEAN, SIZE, STD, source


def config(**changes: Any) -> FinetuneConfig:
    base = {"iterations": 5, "batch": 16, "crop_padding": 1}
    return FinetuneConfig.model_validate(base | changes)


def trunk(seed: int = 0) -> nn.Module:
    return new_network("convnet_krr_w32", SIZE, DIM, seed).get_submodule("trunk")


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def test_full_batches_are_steps_of_torchs_own_sgd_under_its_own_cosine():
    # Of whole images in full batches the order makes no difference but rounding.
    train, steps = source(24), 6
    cfg = config(iterations=steps, batch=24, crop_padding=0, flip=0, lr=0.05, weight_decay=0.1)
    found = finetune(cfg, trunk(), train, 3, CPU).state_dict()
    twin = new_classifier(trunk(), 4, 3).train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    images = (train.images.float() / 255 - mean) / std
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(twin(images), train.labels).backward()
        optimizer.step()
        schedule.step()
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-3)


def test_a_task_is_learnt_by_all_weights_and_the_given_trunk_stays_as_it_is():
    given = trunk()
    before = weights(given)
    net = finetune(config(iterations=40, flip=0), given, source(), 0, CPU)
    assert not net.training
    assert evaluate(net, source(seed=1), CPU).top1 > 80  # of 4 classes, on other images
    assert all(torch.equal(before[name], now) for name, now in given.state_dict().items())
    moved = net.get_submodule("trunk").state_dict()
    assert not any(torch.equal(before[name], moved[name]) for name, _ in given.named_parameters())


def test_the_seed_decides_everything():
    first, again, other = (
        finetune(config(), trunk(), source(), seed, CPU).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_crops_and_flips_change_what_is_seen():
    seen = [
        finetune(config(**changes), trunk(), source(), 0, CPU).state_dict()["head.weight"]
        for changes in ({"flip": 0, "crop_padding": 0}, {"flip": 1, "crop_padding": 0}, {})
    ]
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_killed_after_any_step_it_goes_on_bit_for_bit(tmp_path: Path):
    whole = finetune(config(), trunk(), source(), 0, CPU).state_dict()

    class Killed(Exception):
        pass

    for steps in range(1, 5):
        checkpoint, notes = Checkpoint(tmp_path / f"{steps}.pt", 0), []

        def advance(note: str, notes: list[str] = notes, last: int = steps) -> None:
            notes.append(note)
            if len(notes) > last:
                raise Killed

        with pytest.raises(Killed):
            finetune(config(), trunk(), source(), 0, CPU, checkpoint, advance)
        state = checkpoint.load()
        assert state is not None and state["step"] == steps
        found = finetune(config(), trunk(), source(), 0, CPU, checkpoint).state_dict()
        assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_fewer_images_than_a_batch_are_a_batch():
    net = finetune(config(batch=256), trunk(), source(7), 0, CPU)
    assert all(tensor.isfinite().all() for tensor in net.parameters())


def test_a_diverging_training_ends_in_one_sentence():
    with pytest.raises(RunError, match=r"^finetune: the loss is .*; lower the learning rate"):
        finetune(config(lr=1e30), trunk(), source(), 0, CPU)
    with pytest.raises(RunError, match=r"^finetune: after the last step .*; lower the learning"):
        finetune(config(lr=1e30, iterations=1), trunk(), source(), 0, CPU)
