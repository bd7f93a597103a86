"""What every step may use: the configuration, the run directory, the images, the arms."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scdd.checkpoint import Checkpoint, fill, load_weights
from scdd.config.run import RunConfig
from scdd.datasets import Dataset, check_dataset, load_dataset
from scdd.deadline import Deadline
from scdd.distilled import Header, codec_of
from scdd.distributed import World
from scdd.errors import ConfigError, DataError
from scdd.files import sha256_of
from scdd.models import recreate
from scdd.run import RunDirectory, versions
from scdd.stages.select import random_real
from scdd.steps.pair_sizes import plan_pairs


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
    deadline: Deadline = field(default_factory=lambda: Deadline(math.inf))

    @cached_property
    def dataset(self) -> Dataset:
        """The real images."""
        return load_dataset(self.cfg.dataset, self.device)

    @cached_property
    def squeeze_dataset(self) -> Dataset:
        """The images that the backbone learns on: others than `dataset` where the user says so."""
        if self.cfg.squeeze_dataset is None:
            return self.dataset
        with named("squeeze_dataset"):
            return load_dataset(self.cfg.squeeze_dataset, self.device)

    @cached_property
    def transfer(self) -> tuple[Dataset, ...]:
        """More images on which pre-trained networks are tried."""
        found = []
        for key, section in self.cfg.transfer.items():
            with named(key):
                found.append(load_dataset(section, self.device))
        return tuple(found)

    def checkpoint(self, step: str, shard: str = "") -> Checkpoint:
        """The rolling checkpoint of a step, or of one shard of it, which begins now.

        Raises:
            OutOfTime: if there is no time for another shard.
        """
        self.deadline.between()
        path = self.run.folder(step) / f"{shard or step}.checkpoint"
        return Checkpoint(path, self.cfg.checkpoint_minutes, self.deadline)

    def shared_checkpoint(self, step: str, shard: str = "") -> Checkpoint:
        """As `checkpoint`, for what all ranks do together: one saves, all load."""
        checkpoint = self.checkpoint(step, shard)
        return checkpoint if self.world.leads else Checkpoint(checkpoint.path, math.inf)

    def network(self, *names: str) -> tuple[nn.Module, dict[str, Any]]:
        """A network written by an earlier step, on the device, with what was recorded about it.

        `names` lead to its file: the step, folders below it if any, the file.
        """
        path = self.run.path.joinpath(*names)
        weights, about = load_weights(path)
        return fill(recreate(about), weights, path).to(self.device), about

    def teacher_files(self, step: str) -> list[tuple[str, ...]]:
        """Where the networks lie that a step uses (`RunConfig.teachers_of`), as `network` wants it.

        A labeller labels as it was after the epoch that `relabel.epochs` names.
        """
        epochs = {} if step in self.cfg.recoveries else self.cfg.relabel.epochs
        return [
            ("probe", "teacher.safetensors")
            if name == "squeeze"
            else ("probe_labellers", network.arch, teacher_file(epochs.get(network.arch)))
            for name, network in self.cfg.teachers_of(step).items()
        ]

    def arms(self) -> list[Arm]:
        """The arms of this configuration."""
        there = {
            "relabel": True,
            "relabel_real": self.cfg.recover_real is not None,
            "baseline": self.cfg.has_baseline,
        }
        return [arm for arm in ARMS if there[arm.step]]


@contextmanager
def named(key: str) -> Iterator[None]:
    """Let what is wrong with images be said of the section `key`, where it is not `dataset`."""
    try:
        yield
    except DataError as error:
        said = str(error)
        own = said.replace("dataset.", f"{key}.")
        raise DataError(own if own != said else f"{key}: {said}") from error


def check_later_steps(cfg: RunConfig, dataset: Dataset) -> None:
    """Refuse what later steps, where there are such, would refuse hours later.

    Raises:
        UserError: if a class has too few images, pairs do not fit them or the budget, a codec does
            not fit the number of classes, a batch cannot hold a group, or images of another task
            are missing.
    """
    for key, section in cfg.transfer.items():
        with named(key):
            check_dataset(section)
    classes, plan = len(dataset.classes), None
    if cfg.pairs_from is not None:
        plan = plan_pairs(cfg, len(dataset.train), classes)
    starts = {recovery.start for recovery in cfg.recoveries.values()} - {"noise"}
    if plan is None or starts:
        random_real(dataset.train, cfg.ipc, cfg.seed)  # Which refuses what there is too little of.
    if cfg.pretrain is not None:
        return
    codec_of(cfg.relabel, classes)
    count = cfg.ipc * classes if plan is None else plan.sizes.pairs
    if plan is not None and count < 2:
        raise ConfigError(
            "condense_pairs makes one image, on which no student can be trained; raise "
            "condense_pairs.budget_n"
        )
    largest = min(cfg.relabel.group, count) if cfg.relabel.teacher_bn == "batch" else 0
    if cfg.posttrain.micro_batch < largest:
        parts = cfg.posttrain.micro_batches
        shared = f" in {parts} micro-batches" if parts > 1 else ""
        raise ConfigError(
            f"posttrain.batch = {cfg.posttrain.batch}{shared} cannot hold a group of {largest} "
            "images that relabel labels together; raise it, or lower relabel.group (now "
            f"{cfg.relabel.group})"
        )


def kept(epoch: int | None) -> str:
    """What ends the names of files of a network as it was after an epoch; None: the last."""
    return "" if epoch is None else f"-epoch-{epoch:04d}"


def teacher_file(epoch: int | None) -> str:
    """Name of the weights of a labeller."""
    return f"teacher{kept(epoch)}.safetensors"


def about_network(model: nn.Module) -> dict[str, Any]:
    names = ("arch", "image_size", "num_classes", "stem", "stem_spec")
    return {name: getattr(model, name) for name in names}


def header_of(
    context: Context,
    about: dict[str, Any],
    target_kind: str,
    method: str | None = None,
    labellers: Sequence[Path] = (),
    budget_n: int | None = None,
    taught: bool = True,
) -> Header:
    """Header of a file of the run.

    Args:
        context: of the run.
        about: a network that knows the classes and the pixel statistics of the file.
        target_kind: of the soft labels.
        method: how the images came to be; not given: that of the run.
        labellers: weights of the networks whose mean the labels are, if not that teacher's alone.
        budget_n: number of images where classes are unequal; not given: `ipc` of each.
        taught: whether the teacher of the run has to do with it, and is recorded.
    """
    cfg = context.cfg
    teacher: dict[str, Any] | None = None
    if taught:
        path = context.run.path / "probe" / "teacher.safetensors"
        teacher = teacher_record(path, load_weights(path)[1])
        teacher["bn"] = cfg.relabel.teacher_bn
    if teacher is not None and labellers:
        teacher["labellers"] = [teacher_record(path, load_weights(path)[1]) for path in labellers]
    return Header(
        kind="dense",
        target_kind=target_kind,
        target_dim=len(about["classes"]) if target_kind == "logits" else 0,
        method=method or cfg.method,
        recipe=cfg.recipe,
        dataset=cfg.dataset.name,
        class_names=tuple(about["classes"]),
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
        image_size=about["image_size"],
        ipc=cfg.ipc if budget_n is None else None,
        budget_n=budget_n,
        seed=cfg.seed,
        config=cfg.model_dump(mode="json"),
        versions=versions(),
        teacher=teacher,
    )


def teacher_record(weights: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """What a distilled file says of a network that had to do with it; None is not known.

    `about` is what the file of its weights says.
    """
    names = ("arch", "stem", "objective", "epoch", "val_top1")
    return {name: about.get(name) for name in names} | {"weights": sha256_of(weights)}
