"""Where one seed of one arm works: its images, its kept files, its device, its bar."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from scdd import __version__
from scdd.checkpoint import Checkpoint
from scdd.config.posttrain import PosttrainConfig
from scdd.distilled import DistilledDataset
from scdd.posttraining import steps_per_epoch
from scdd.progress import Bar
from scdd.stages.posttrain import train_student
from scdd.training import evaluate
from scdd_apps.files import Inputs, Rows
from scdd_apps.prune.plan import Plan
from scdd_apps.prune.results import Row
from scdd_apps.prune.sparsity import l1_strength
from scdd_apps.prune.variants import CONTROLS

CHECKPOINT_MINUTES = 5.0


class Goal(NamedTuple):
    """One row: how channels are chosen, and how many go."""

    channels: str
    """A criterion, or the name of a control."""
    ratio: float


@dataclass(frozen=True, eq=False)
class Place:
    """One seed of one arm."""

    inputs: Inputs
    plan: Plan
    arm: str
    seed: int
    data: DistilledDataset
    start: nn.Module | None
    """The network of a checkpoint that is pruned; None: a new one is."""
    device: torch.device
    kept: Rows
    bar: Bar

    @property
    def goals(self) -> list[Goal]:
        """The rows of this place in the order of work: controls go by the row that they control."""
        plan = self.plan
        return [Goal(plan.criterion, 0.0)] + [
            Goal(channels, ratio)
            for ratio in plan.ratios
            if ratio
            for channels in (plan.criterion, *CONTROLS)
        ]

    def key(self, goal: Goal | None) -> dict[str, Any]:
        """What decides a row; None: the network before pruning."""
        key = {
            "app": "prune",
            "scdd": __version__,
            "file": self.data.header.digest,
            "arm": self.arm,
            "seed": self.seed,
            **self.plan.identity(),
        }
        if goal is None:
            return key
        scored_on = {"scored_on": self.inputs.val_digest}
        return {**key, **goal._asdict(), **self.plan.row_identity(), **scored_on}

    def path(self, goal: Goal | None, suffix: str) -> Path:
        """A file that is kept until a row, or the network before pruning, is finished, or on."""
        return self.kept.path(self.key(goal), suffix)

    def finished(self, goal: Goal) -> Row | None:
        """A row, if it is there with its network."""
        row = self.kept.find(self.key(goal))
        if row is None or not (self.inputs.out / row["weights"]).is_file():
            return None
        return row

    def train(
        self,
        model: nn.Module,
        cfg: PosttrainConfig,
        goal: Goal | None,
        stage: str,
        part: str = "",
        after_backward: Callable[[], None] | None = None,
    ) -> None:
        """Train `model` in place; stopped, it goes on from what was saved under `goal` and `part`.

        `stage` says what is done, for people.
        """
        checkpoint = Checkpoint(self.path(goal, f"{part}.pt"), CHECKPOINT_MINUTES)
        note = f"{stage}, {self.arm}, seed {self.seed}"
        train_student(
            cfg,
            model,
            self.data,
            self.plan.labels,
            self.seed,
            self.device,
            checkpoint,
            after_backward=after_backward,
            after_epoch=partial(self._advance, self.bar.done, note),
        )

    def strength(self) -> float | None:
        """Lambda of the L1 term, if there is one."""
        cfg = self.plan.first
        if cfg is None or not self.plan.has_l1:
            return None
        return l1_strength(self.plan.pull, cfg, steps_per_epoch(cfg, self.data))

    def score(self, model: nn.Module) -> float | None:
        """Top-1 in per cent on the real images; None without any."""
        val = self.inputs.val
        return evaluate(model, val, self.device).top1 if val is not None else None

    def _advance(self, before: int, note: str, epoch: int, scored: nn.Module) -> None:
        self.bar.done = before + epoch - 1
        self.bar.advance(note=note)
