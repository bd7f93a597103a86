"""What every step may use: the configuration, the run directory, the images, the arms."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from scdd.checkpoint import Checkpoint, fill, load_weights
from scdd.config.run import RunConfig
from scdd.datasets import Dataset, load_dataset
from scdd.distilled import Header
from scdd.distributed import World
from scdd.errors import ConfigError, DataError
from scdd.files import sha256_of
from scdd.models import recreate
from scdd.run import RunDirectory, versions
from scdd.stages.select import random_real


@dataclass(frozen=True)
class Arm:
    """One distilled file that students are trained on."""

    name: str
    step: str
    file: str


ARMS = (
    Arm("distilled", "relabel", "distilled.h5"),
    Arm("distilled, real start", "relabel_real", "real_start.h5"),
    Arm("random real", "baseline", "random_real.h5"),
)


@dataclass
class Context:
    """What every step may use."""

    cfg: RunConfig
    run: RunDirectory
    device: torch.device
    step_names: tuple[str, ...]
    world: World = field(default_factory=World)

    @cached_property
    def dataset(self) -> Dataset:
        """The real images."""
        return load_dataset(self.cfg.dataset, self.device)

    @cached_property
    def squeeze_dataset(self) -> Dataset:
        """The images that the backbone learns on: others than `dataset` where the user says so."""
        if self.cfg.squeeze_dataset is None:
            return self.dataset
        try:
            return load_dataset(self.cfg.squeeze_dataset, self.device)
        except DataError as error:
            said = str(error)
            own = said.replace("dataset.", "squeeze_dataset.")
            raise DataError(own if own != said else f"squeeze_dataset: {said}") from error

    def checkpoint(self, step: str, shard: str = "") -> Checkpoint:
        """The rolling checkpoint of a step, or of one shard of it."""
        path = self.run.folder(step) / f"{shard or step}.checkpoint"
        return Checkpoint(path, self.cfg.checkpoint_minutes)

    def shared_checkpoint(self, step: str, shard: str = "") -> Checkpoint:
        """As `checkpoint`, for what all ranks do together: one saves, all load."""
        checkpoint = self.checkpoint(step, shard)
        return checkpoint if self.world.leads else Checkpoint(checkpoint.path, math.inf)

    def network(self, step: str, file: str) -> tuple[nn.Module, dict[str, Any]]:
        """A network written by an earlier step, on the device, with what was recorded about it."""
        path = self.run.path / step / file
        weights, about = load_weights(path)
        return fill(recreate(about), weights, path).to(self.device), about

    def arms(self) -> list[Arm]:
        """The arms of this configuration."""
        with_real_start = self.cfg.recover_real is not None
        return [arm for arm in ARMS if arm.step != "relabel_real" or with_real_start]


def check_later_steps(cfg: RunConfig, dataset: Dataset) -> None:
    """Refuse what `baseline` and `posttrain` would refuse hours later.

    Raises:
        UserError: if a class has too few images, or a batch cannot hold a group.
    """
    count = len(random_real(dataset.train, cfg.ipc, cfg.seed))
    largest = min(cfg.relabel.group, count) if cfg.relabel.teacher_bn == "batch" else 0
    if cfg.posttrain.micro_batch < largest:
        parts = cfg.posttrain.micro_batches
        shared = f" in {parts} micro-batches" if parts > 1 else ""
        raise ConfigError(
            f"posttrain.batch = {cfg.posttrain.batch}{shared} cannot hold a group of {largest} "
            "images that relabel labels together; raise it, or lower relabel.group (now "
            f"{cfg.relabel.group})"
        )


def about_network(model: nn.Module) -> dict[str, Any]:
    names = ("arch", "image_size", "num_classes", "stem", "stem_spec")
    return {name: getattr(model, name) for name in names}


def header_of(
    context: Context, teacher: dict[str, Any], target_kind: str, method: str | None = None
) -> Header:
    cfg = context.cfg
    weights = context.run.path / "probe" / "teacher.safetensors"
    return Header(
        kind="dense",
        target_kind=target_kind,
        target_dim=len(teacher["classes"]) if target_kind == "logits" else 0,
        method=method or cfg.method,
        recipe=cfg.recipe,
        dataset=cfg.dataset.name,
        class_names=tuple(teacher["classes"]),
        mean=tuple(teacher["mean"]),
        std=tuple(teacher["std"]),
        image_size=teacher["image_size"],
        ipc=cfg.ipc,
        budget_n=None,
        seed=cfg.seed,
        config=cfg.model_dump(mode="json"),
        versions=versions(),
        teacher={
            "arch": teacher["arch"],
            "stem": teacher["stem"],
            "objective": teacher["objective"],
            "epoch": teacher["epoch"],
            "val_top1": teacher["val_top1"],
            "weights": sha256_of(weights),
            "bn": cfg.relabel.teacher_bn,
        },
    )
