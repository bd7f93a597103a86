"""The steps of a run: each reads files of earlier steps, calls a stage, writes its own files.

Long steps work in shards (a batch of images, a range of views, a student), each written whole, and
go on after a kill with the first shard that is missing.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scdd.checkpoint import Checkpoint, fill, load_weights, save_weights
from scdd.config.recover import RecoverConfig
from scdd.config.run import RunConfig
from scdd.config.squeeze import SqueezeConfig
from scdd.datasets import Dataset, load_dataset
from scdd.distilled import DistilledDataset, Header, ViewRecords, write_distilled
from scdd.distributed import World
from scdd.errors import ConfigError, RunError
from scdd.files import sha256_of, write_json
from scdd.models import create_model
from scdd.objectives import Objective
from scdd.progress import Bar, say
from scdd.run import RunDirectory, versions
from scdd.seeding import generator
from scdd.stages.posttrain import Labels, new_student, train_student
from scdd.stages.probe import probe
from scdd.stages.recover import batches_of, recover
from scdd.stages.relabel import relabel
from scdd.stages.select import random_real
from scdd.stages.squeeze import squeeze
from scdd.tables import size
from scdd.training import evaluate

IMAGES_PER_SHARD = 20_000


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
        model = create_model(about["arch"], about["num_classes"], about["image_size"])
        return fill(model, weights, path).to(self.device), about

    def arms(self) -> list[Arm]:
        """The arms of this configuration."""
        with_real_start = self.cfg.recover_real is not None
        return [arm for arm in ARMS if arm.step != "relabel_real" or with_real_start]


def run_squeeze(context: Context, step: str) -> tuple[str, ...]:
    """images -> backbone.safetensors, beside it the kept epochs and what labels have taught."""
    check_later_steps(context.cfg, context.dataset)
    return _squeeze(context, step, context.cfg.squeeze, "", context.cfg.seed)


def run_squeeze_labellers(context: Context, step: str) -> tuple[str, ...]:
    """images -> ARCH/backbone.safetensors and so on, for each of several networks."""
    seeds = [
        generator(context.cfg.seed, step, number).initial_seed()
        for number in range(len(context.cfg.squeeze_labellers))
    ]
    return tuple(
        name
        for cfg, seed in zip(context.cfg.squeeze_labellers, seeds, strict=True)
        for name in _squeeze(context, step, cfg, cfg.arch, seed)
    )


def _squeeze(
    context: Context, step: str, cfg: SqueezeConfig, subfolder: str, seed: int
) -> tuple[str, ...]:
    """Train one backbone into a subfolder of a step; return its files."""
    data, world, target = context.dataset, context.world, context.run.folder(step) / subfolder
    checkpoint = context.shared_checkpoint(step, subfolder)

    def write(suffix: str, epoch: int, objective: Objective) -> None:
        """The classifier and then the backbone as they are now."""
        if not world.leads:
            return
        about = {**_about(objective.backbone), "objective": cfg.objective.name, "epoch": epoch}
        if objective.classifier is not None:
            head = objective.classifier.state_dict()
            save_weights(target / f"classifier{suffix}.safetensors", head, about)
        weights = objective.backbone.state_dict()
        save_weights(target / f"backbone{suffix}.safetensors", weights, about)

    if not (target / "backbone.safetensors").exists():  # Else only the marker was missing.
        target.mkdir(exist_ok=True)
        objective = squeeze(
            cfg,
            data.train,
            data.val,
            data.image_size,
            seed,
            context.device,
            checkpoint,
            partial(context.run.log, arch=cfg.arch) if world.leads else _no_log,
            lambda epoch, now: write(f"-epoch-{epoch:04d}", epoch, now),
            step,
        )
        if objective.forgetting is not None and world.leads:
            save_weights(target / "forgetting.safetensors", objective.forgetting, {})
        write("", cfg.epochs, objective)
    world.barrier()
    checkpoint.remove()
    names = (path.relative_to(context.run.folder(step)) for path in target.glob("*.safetensors"))
    return tuple(sorted(map(str, names)))


def _no_log(stage: str, /, **values: Any) -> None:
    """Ranks other than the first log nothing."""


def run_probe(context: Context, step: str) -> tuple[str, ...]:
    """backbone -> teacher.safetensors, with its accuracy on the real validation images."""
    cfg, data = context.cfg, context.dataset
    backbone, about = context.network("squeeze", "backbone.safetensors")
    result = probe(cfg.probe, backbone, data.train, data.val, cfg.seed, context.device)
    about = {
        **about,
        **_about(result.teacher),
        "classes": list(data.train.classes),
        "mean": data.train.mean,
        "std": data.train.std,
        "l2": result.l2,
        "val_top1": result.accuracy.top1,
        "val_top5": result.accuracy.top5,
    }
    context.run.log(step, l2=result.l2, val_top1=result.accuracy.top1)
    say(f"  teacher: {result.accuracy.top1:.1f} % on the {len(data.val)} validation images")
    save_weights(
        context.run.folder(step) / "teacher.safetensors", result.teacher.state_dict(), about
    )
    return ("teacher.safetensors",)


def run_recover(context: Context, step: str) -> tuple[str, ...]:
    """teacher -> images.h5; `recover_real` starts from random real images, `recover` from noise."""
    cfg, target = context.cfg, context.run.folder(step) / "images.h5"
    shards = context.run.folder(step) / "shards"
    settings = cfg.recover_real if step == "recover_real" else cfg.recover
    assert settings is not None
    teacher, about = context.network("probe", "teacher.safetensors")
    start = _start_images(context, settings)
    batches = batches_of(cfg.ipc, len(about["classes"]), settings.batch, start)
    mine = context.world.share(batches)
    with Bar(step, len(mine) * settings.iterations) as bar:
        for batch in mine:
            shard = shards / f"batch-{batch.index:05d}.safetensors"
            if shard.exists() or target.exists():
                bar.advance(settings.iterations)
                continue
            checkpoint = context.checkpoint(step, f"batch-{batch.index:05d}")
            images = recover(
                settings,
                teacher,
                batch,
                about["image_size"],
                about["mean"],
                about["std"],
                cfg.seed,
                context.device,
                checkpoint,
                lambda note: bar.advance(note=note),
                partial(context.run.log, step),
            )
            save_weights(shard, {"images": images}, {"index": batch.index})
            checkpoint.remove()
    context.world.barrier()
    if context.world.leads and not target.exists():
        images = torch.cat([load_weights(path)[0]["images"] for path in _finished(shards)])
        labels = torch.cat([batch.labels for batch in batches])
        write_distilled(target, _header(context, about, "none"), images, labels.int(), None)
    if context.world.leads:
        _remove_shards(shards)
    return ("images.h5",)


def run_relabel(context: Context, step: str) -> tuple[str, ...]:
    """teacher + recovered images -> the distilled file."""
    source = "recover_real" if step == "relabel_real" else "recover"
    data = DistilledDataset.open(context.run.path / source / "images.h5")
    file = next(arm.file for arm in ARMS if arm.step == step)
    return _label(context, step, data.images, data.labels, file, context.cfg.method)


def run_baseline(context: Context, step: str) -> tuple[str, ...]:
    """Random real images at the same ipc, labelled by the same teacher in the same way."""
    train = context.dataset.train
    rows = random_real(train, context.cfg.ipc, context.cfg.seed)
    return _label(
        context, step, train.read(rows).cpu(), train.labels[rows], "random_real.h5", "random"
    )


def run_posttrain(context: Context, step: str) -> tuple[str, ...]:
    """The distilled files -> results.json: students of every arm, kind of label and seed."""
    cfg, val = context.cfg.posttrain, context.dataset.val
    check_later_steps(context.cfg, context.dataset)
    rows = context.run.folder(step) / "rows"
    plan = [
        (arm, labels, seed)
        for seed in range(cfg.seeds)
        for arm in context.arms()
        for labels in cfg.labels
    ]
    mine = context.world.share(plan)
    with Bar(step, len(mine) * cfg.epochs) as bar:
        for arm, labels, seed in mine:
            row = rows / f"{arm.step}-{labels}-{seed}.json"
            if row.exists():
                bar.advance(cfg.epochs)
            else:
                _train_row(context, step, arm, labels, seed, row, bar)
    context.world.barrier()
    scores = [json.loads(path.read_text()) for path in sorted(rows.glob("*.json"))]
    result = {
        "protocol": cfg.model_dump(),
        "val_images": len(val.labels),
        "rows": scores,
    }
    if context.world.leads:
        write_json(context.run.folder(step) / "results.json", result)
    return ("results.json",)


def student_seed(seed: int, number: int) -> int:
    """Seed of student `number` of a run: that of its weights, order of images and dropout."""
    return generator(seed, "posttrain.student", number).initial_seed()


def check_later_steps(cfg: RunConfig, dataset: Dataset) -> None:
    """Refuse what `baseline` and `posttrain` would refuse hours later.

    Raises:
        UserError: if a class has too few images, or a batch cannot hold a group.
    """
    count = len(random_real(dataset.train, cfg.ipc, cfg.seed))
    largest = min(cfg.relabel.group, count) if cfg.relabel.teacher_bn == "batch" else 0
    if cfg.posttrain.batch < largest:
        raise ConfigError(
            f"posttrain.batch = {cfg.posttrain.batch} cannot hold a group of {largest} images that "
            f"relabel labels together; raise it, or lower relabel.group (now {cfg.relabel.group})"
        )


def _train_row(
    context: Context, step: str, arm: Arm, labels: Labels, seed: int, row: Path, bar: Bar
) -> None:
    """Train one student and write its scores: those of the last epoch."""
    cfg, val, device = context.cfg.posttrain, context.dataset.val, context.device
    data = DistilledDataset.open(context.run.path / arm.step / arm.file, device)
    run_seed = student_seed(context.cfg.seed, seed)
    student = new_student(cfg.arch, data, run_seed)
    checkpoint = context.checkpoint(step, row.stem)
    before = bar.done

    def after_epoch(epoch: int, scored: nn.Module) -> None:
        bar.done = before + epoch - 1
        bar.advance(note=f"{arm.name}, {labels} labels, seed {seed}")
        if cfg.evaluate_every and epoch % cfg.evaluate_every == 0:
            top1 = evaluate(scored, val, device).top1
            context.run.log(step, arm=arm.name, labels=labels, seed=seed, epoch=epoch, top1=top1)

    try:
        train_student(
            cfg,
            student,
            data,
            labels,
            run_seed,
            device,
            checkpoint,
            after_epoch=after_epoch,
        )
    except RunError as error:
        raise RunError(f"{error}, and run again with --redo {step}") from error
    score = evaluate(student, val, device)
    record = {
        "arm": arm.name,
        "labels": labels,
        "seed": seed,
        "top1": score.top1,
        "top5": score.top5,
        "steps": cfg.epochs * data.steps(cfg.batch),
        "label_bytes": data.label_bytes if labels == "soft" else 0,
    }
    context.run.log(step, **record)
    write_json(row, record)
    checkpoint.remove()


def _label(
    context: Context, step: str, images: Tensor, labels: Tensor, file: str, method: str
) -> tuple[str, ...]:
    """Label stored views shard by shard, then write the distilled file from the shards."""
    cfg = context.cfg.relabel
    teacher, about = context.network("probe", "teacher.safetensors")
    classes = len(about["classes"])
    say(f"  soft labels: {size(2 * cfg.views * len(images) * classes)} ({cfg.codec})")
    target, shards = context.run.folder(step) / file, context.run.folder(step) / "shards"
    stride = max(1, IMAGES_PER_SHARD // len(images))
    ranges = [(first, min(first + stride, cfg.views)) for first in range(0, cfg.views, stride)]
    mine = context.world.share(ranges)
    with Bar(step, sum(last - first for first, last in mine)) as bar:
        for first, last in mine:
            shard = shards / f"views-{first:05d}.safetensors"
            if not (shard.exists() or target.exists()):
                records, logits = relabel(
                    cfg,
                    teacher,
                    images,
                    about["mean"],
                    about["std"],
                    context.cfg.seed,
                    first,
                    last,
                    context.device,
                )
                tensors = {"logits": logits, **records.parameters}
                save_weights(shard, tensors, {"ops": records.ops, "padding": records.padding})
            bar.advance(last - first)
    context.world.barrier()
    if context.world.leads and not target.exists():
        header = _header(context, about, "logits", method)
        write_distilled(target, header, images, labels.int(), _blocks(shards), cfg.views)
    if context.world.leads:
        _remove_shards(shards)
    return (file,)


def _blocks(shards: Path) -> Iterator[tuple[ViewRecords, Tensor]]:
    for path in _finished(shards):
        tensors, about = load_weights(path)
        logits = tensors.pop("logits")
        yield ViewRecords(tuple(about["ops"]), tensors, about["padding"]), logits


def _finished(shards: Path) -> list[Path]:
    """Shards in order, without what a kill left half-written beside them."""
    return sorted(shards.glob("*.safetensors"))


def _remove_shards(folder: Path) -> None:
    """Shards are our own and their content is in a finished file."""
    if folder.exists():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def _start_images(context: Context, settings: RecoverConfig) -> Tensor | None:
    """Real images to start from, the same that the baseline uses; None for noise."""
    if settings.start == "noise":
        return None
    train = context.dataset.train
    return train.read(random_real(train, context.cfg.ipc, context.cfg.seed)).cpu()


def _about(model: nn.Module) -> dict[str, Any]:
    names = ("arch", "image_size", "num_classes", "stem")
    return {name: getattr(model, name) for name in names}


def _header(
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
