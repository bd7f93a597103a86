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
from scdd.datasets import Dataset, load_dataset
from scdd.datasets.pixel_statistics import with_statistics
from scdd.distilled import DistilledDataset, Header, ViewRecords, write_distilled
from scdd.distributed import World
from scdd.errors import CheckpointError, ConfigError, DataError, RunError
from scdd.files import sha256_of, write_json
from scdd.models import create_model
from scdd.objectives import Objective
from scdd.preflight import accuracy_floor, check_teacher
from scdd.progress import Bar, say
from scdd.run import RunDirectory, versions
from scdd.seeding import generator
from scdd.stages.posttrain import Labels, new_student, train_student
from scdd.stages.probe import FeatureShard, Head, probe, shard_features, shards_of
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

    @cached_property
    def squeeze_dataset(self) -> Dataset:
        """The images that the backbone learns on: others than `dataset` where the user says so."""
        if self.cfg.squeeze_dataset is None:
            return self.dataset
        try:
            return load_dataset(self.cfg.squeeze_dataset, self.device)
        except DataError as error:
            raise DataError(f"squeeze_dataset: {error}") from error

    def checkpoint(self, step: str, shard: str = "") -> Checkpoint:
        """The rolling checkpoint of a step, or of one shard of it."""
        path = self.run.folder(step) / f"{shard or step}.checkpoint"
        return Checkpoint(path, self.cfg.checkpoint_minutes)

    def shared_checkpoint(self, step: str) -> Checkpoint:
        """As `checkpoint`, for a step that all ranks do together: one saves, all load."""
        if self.world.leads:
            return self.checkpoint(step)
        return Checkpoint(self.checkpoint(step).path, math.inf)

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
    cfg, data, world = context.cfg, context.squeeze_dataset, context.world
    check_later_steps(context.cfg, context.dataset)
    checkpoint, folder = context.shared_checkpoint(step), context.run.folder(step)
    if (folder / "backbone.safetensors").exists():  # Killed when all but the marker was written.
        checkpoint.remove()
        return _names(folder, "*.safetensors")
    objective = squeeze(
        cfg.squeeze,
        data.train,
        data.val,
        data.image_size,
        cfg.seed,
        context.device,
        checkpoint,
        context.run.log if world.leads else lambda stage, **values: None,
        lambda epoch, now: _write_squeezed(context, step, now, epoch, f"-epoch-{epoch:04d}"),
    )
    if objective.forgetting is not None and world.leads:
        save_weights(folder / "forgetting.safetensors", objective.forgetting, {})
    _write_squeezed(context, step, objective, cfg.squeeze.epochs, "")
    world.barrier()
    checkpoint.remove()
    return _names(folder, "*.safetensors")


def _write_squeezed(
    context: Context, step: str, objective: Objective, epoch: int, suffix: str
) -> None:
    """Write the backbone as it is now, and first the classifier that was trained with it."""
    if not context.world.leads:
        return
    backbone, folder = objective.backbone, context.run.folder(step)
    train = context.squeeze_dataset.train
    about = {
        **_about(backbone),
        "objective": context.cfg.squeeze.objective.name,
        "epoch": epoch,
        "mean": train.mean,
        "std": train.std,
    }
    if objective.classifier is not None:
        head, classes = objective.classifier.state_dict(), {"classes": train.classes}
        save_weights(folder / f"classifier{suffix}.safetensors", head, about | classes)
    save_weights(folder / f"backbone{suffix}.safetensors", backbone.state_dict(), about)


def run_probe(context: Context, step: str) -> tuple[str, ...]:
    """backbone -> teacher.safetensors, which must classify the real validation images well enough.

    Ranks share the features, which lie in shards until the teacher is there; one rank fits it.
    """
    cfg, data, folder = context.cfg, context.dataset, context.run.folder(step)
    target, shards = folder / "teacher.safetensors", folder / "features"
    backbone, about = context.network("squeeze", "backbone.safetensors")
    train, val = (with_statistics(s, about["mean"], about["std"]) for s in (data.train, data.val))

    def path(shard: FeatureShard) -> Path:
        return shards / f"view-{shard.view:02d}-image-{shard.first:08d}.safetensors"

    plan = shards_of(cfg.probe, len(train))
    mine = context.world.share(plan)
    if plan:
        width = int(backbone.feature_dim)  # type: ignore[arg-type]
        rows = sum(shard.last - shard.first for shard in plan)
        say(f"  features, until the step is done: {size(4 * width * rows)}")
    with Bar(step, len(mine)) as bar:
        for shard in mine:
            if not (path(shard).exists() or target.exists()):
                features = shard_features(
                    cfg.probe, backbone, train, shard, cfg.seed, context.device
                )
                save_weights(path(shard), {"features": features}, {})
            bar.advance()
    context.world.barrier()
    if not context.world.leads:
        return ("teacher.safetensors",)
    checkpoint = context.checkpoint(step)
    if not target.exists():
        result = probe(
            cfg.probe,
            backbone,
            train,
            val,
            cfg.seed,
            context.device,
            checkpoint,
            stored=lambda shard: load_weights(path(shard))[0]["features"],
            given=_given_head(context, train.classes) if cfg.probe.solver == "given" else None,
        )
        found = {
            "solver": cfg.probe.solver,
            **result.chosen,
            "val_top1": result.accuracy.top1,
            "val_top5": result.accuracy.top5,
        }
        context.run.log(step, **found, tried=list(result.tried.items()))
        about = {**about, **_about(result.teacher), "classes": train.classes, **found}
        save_weights(target, result.teacher.state_dict(), about)
    checkpoint.remove()
    _remove_shards(shards)
    _check_teacher(context, target)
    return ("teacher.safetensors",)


def _check_teacher(context: Context, path: Path) -> None:
    """Say how good the teacher is, and refuse one that is not worth going on with."""
    about, images = load_weights(path)[1], len(context.dataset.val)
    floor = accuracy_floor(context.cfg.probe, len(about["classes"]), expected_top1=None)
    say(
        f"  teacher: {about['val_top1']:.1f} % on the {images} validation images; at least "
        f"{floor.top1:.1f} % wanted"
    )
    check_teacher(about["val_top1"], images, floor)


def _given_head(context: Context, classes: tuple[str, ...]) -> Head:
    """The classifier that squeeze left.

    Raises:
        ConfigError: if it left none, or one of other classes.
    """
    path = context.run.path / "squeeze" / "classifier.safetensors"
    instead = "set probe.solver to lbfgs or sgd"
    if not path.exists():
        raise ConfigError(f"{path}: is not there, as squeeze has brought no classifier; {instead}")
    weights, about = load_weights(path)
    try:
        head = Head(weights["weight"], weights["bias"])
    except KeyError as error:
        raise CheckpointError(f"{path}: holds no {error} of a linear layer; {instead}") from error
    if len(head.bias) != len(classes):
        raise ConfigError(
            f"{path}: tells {len(head.bias)} classes apart, but dataset has {len(classes)}; "
            + instead
        )
    known = tuple(about.get("classes", classes))
    if known != classes:
        own, other = next(pair for pair in zip(classes, known, strict=True) if len(set(pair)) > 1)
        raise ConfigError(f"{path}: knows class '{other}' where dataset has '{own}'; {instead}")
    return head


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
    cfg, device = context.cfg.posttrain, context.device
    data = DistilledDataset.open(context.run.path / arm.step / arm.file, device)
    val = with_statistics(context.dataset.val, data.mean, data.std)
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


def _names(folder: Path, pattern: str) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.glob(pattern)))


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
