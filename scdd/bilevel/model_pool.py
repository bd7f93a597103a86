"""The pool of online models (KRR-ST, arXiv:2310.06511, section 3.3): networks of different ages.

Each is trained on the pairs by plain regression, without any randomness, and replaced by a new one
when it is old.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scdd.bilevel.passes import PLAIN, Passes
from scdd.bilevel.regressor import new_regressor
from scdd.config.condense_pairs import PoolConfig
from scdd.seeding import generator, seeded


@dataclass(eq=False)
class OnlineModel:
    """A network in training on the pairs."""

    index: int
    """Place in the pool."""
    net: nn.Sequential
    """`trunk` to features [B, p] and `head` to targets [B, d]."""
    optimizer: torch.optim.Optimizer
    age: int = 0
    """Steps of training, since it was initialised or as `reset_counter` counts them."""
    born: int = 0
    """Outer step after which it was initialised; its weights depend on this and `index` alone."""

    def state(self) -> dict[str, Any]:
        """All that changes, for a checkpoint."""
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "age": self.age,
            "born": self.born,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become what `state` says."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.age, self.born = state["age"], state["born"]


def new_pool(
    cfg: PoolConfig, image_size: int, target_dim: int, seed: int, device: torch.device
) -> list[OnlineModel]:
    """Return freshly initialised models of age 0."""
    return [
        _new_model(cfg, index, 0, image_size, target_dim, seed, device)
        for index in range(cfg.models)
    ]


def first_age(cfg: PoolConfig, index: int, seed: int) -> int:
    """Age at which a model enters the outer loop: uniform in 1 .. cfg.age - 1, or 1."""
    draw = generator(seed, "condense_pairs.age", index)
    return int(torch.randint(1, max(2, cfg.age), (), generator=draw))


def chosen_model(cfg: PoolConfig, step: int, seed: int) -> int:
    """Which model the outer loss of a step is computed with."""
    draw = generator(seed, "condense_pairs.model", step)
    return int(torch.randint(cfg.models, (), generator=draw))


def inner_step(
    cfg: PoolConfig,
    model: OnlineModel,
    images: Tensor,
    targets: Tensor,
    passes: Passes = PLAIN,
) -> None:
    """Train a model one step in train mode: mean squared error over all entries of `targets`.

    All pairs [n, ...] at once, or where these are too many a fixed part of them, another at every
    age; nothing is drawn, which would bias the outer gradient.
    """
    parts = -(-len(images) // cfg.batch)
    rows = slice(model.age % parts, None, parts)
    model.net.train().requires_grad_(True)
    loss = passes.inner_loss(model.net, images[rows].detach(), targets[rows].detach())
    model.optimizer.zero_grad()
    loss.backward()
    model.optimizer.step()
    model.age += 1


def grow(
    cfg: PoolConfig,
    model: OnlineModel,
    images: Tensor,
    targets: Tensor,
    step: int,
    seed: int,
    passes: Passes = PLAIN,
) -> None:
    """End the outer step number `step`: train the model, or initialise it anew if it is old."""
    if model.age < cfg.age:
        inner_step(cfg, model, images, targets, passes)
        return
    device = images.device
    fresh = _new_model(cfg, model.index, step, images.shape[-1], targets.shape[1], seed, device)
    model.net, model.optimizer, model.born = fresh.net, fresh.optimizer, step
    model.age = 0 if cfg.reset_counter else model.age


def _new_model(
    cfg: PoolConfig,
    index: int,
    born: int,
    image_size: int,
    target_dim: int,
    seed: int,
    device: torch.device,
) -> OnlineModel:
    with seeded(seed, "condense_pairs.init", index, born):
        net = new_regressor(cfg.arch, image_size, target_dim).to(device)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay
    )
    return OnlineModel(index, net, optimizer, born=born)
