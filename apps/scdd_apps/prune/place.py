"""Where one seed of one arm works: its images, its kept files, its device, its bar."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from scdd import __version__
from scdd.checkpoint import Checkpoint
from scdd.distilled import DistilledDataset
from scdd.posttraining import steps_per_epoch
from scdd.progress import Bar
from scdd.training import evaluate
from scdd_apps.files import Inputs, Rows, training_identity
from scdd_apps.prune.plan import Plan
from scdd_apps.prune.results import Row
from scdd_apps.prune.sparsity import l1_strength

CHECKPOINT_MINUTES = 5.0


@dataclass(frozen=True, eq=False)
class Place:
    """One seed of one arm."""

    inputs: Inputs
    plan: Plan
    arm: str
    seed: int
    data: DistilledDataset
    device: torch.device
    kept: Rows
    bar: Bar

    def key(self, ratio: float | None) -> dict[str, Any]:
        """What decides the row of a ratio; None: the network before pruning."""
        plan = self.plan
        key = {
            "app": "prune",
            "scdd": __version__,
            "file": self.data.header.digest,
            "arch": plan.arch,
            "arm": self.arm,
            "labels": plan.labels,
            "seed": self.seed,
            "pull": plan.pull,
            "sparsity": training_identity(plan.sparsity),
        }
        if ratio is None:
            return key
        tuning = training_identity(plan.fine_tuning)
        return {**key, "ratio": ratio, "fine_tuning": tuning, "scored_on": self.inputs.val_digest}

    def finished(self, ratio: float) -> Row | None:
        """The row of a ratio, if it is there with its network."""
        row = self.kept.find(self.key(ratio))
        if row is None or not (self.inputs.out / row["weights"]).is_file():
            return None
        return row

    def checkpoint(self, ratio: float | None) -> Checkpoint:
        """State of the training that leads to a row; None: to the network before pruning."""
        return Checkpoint(self.kept.path(self.key(ratio), ".pt"), CHECKPOINT_MINUTES)

    def strength(self) -> float:
        """Lambda of the L1 term."""
        cfg = self.plan.sparsity
        return l1_strength(self.plan.pull, cfg, steps_per_epoch(cfg, self.data))

    def score(self, model: nn.Module) -> float | None:
        """Top-1 in per cent on the real images; None without any."""
        val = self.inputs.val
        return evaluate(model, val, self.device).top1 if val is not None else None

    def show(self, stage: str) -> Callable[[int, nn.Module], None]:
        """What to call after each epoch of a training."""
        return partial(self._advance, self.bar.done, f"{stage}, {self.arm}, seed {self.seed}")

    def _advance(self, before: int, note: str, epoch: int, scored: nn.Module) -> None:
        self.bar.done = before + epoch - 1
        self.bar.advance(note=note)
