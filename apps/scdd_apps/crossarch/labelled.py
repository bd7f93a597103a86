"""A file of class labels: a student of each architecture, kind of label and seed."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from scdd import __version__
from scdd.checkpoint import Checkpoint
from scdd.config.posttrain import PosttrainConfig
from scdd.distilled import DistilledDataset
from scdd.errors import ConfigError
from scdd.posttraining import Labels, steps_per_epoch
from scdd.progress import Bar
from scdd.stages.posttrain import new_student, open_for_training, train_student
from scdd.training import evaluate
from scdd_apps.crossarch.compared import Compared, Forecast, Row
from scdd_apps.crossarch.options import Options, Tuning, tuning_of
from scdd_apps.crossarch.published import table_8
from scdd_apps.crossarch.recipes import Recipe, recipe_for
from scdd_apps.files import Inputs, label_kinds, training_identity
from scdd_apps.report import macs_line, score_line
from scdd_apps.report_cost import macs, parameters, step_seconds

DEFAULT_ARCHS = (
    "resnet18",
    "regnet_x_400mf",
    "squeezenet1_0",
    "mobilenet_v3_large",
    "shufflenet_v2_x0_5",
    "vit_tiny",
)
"""The families of SC-DD's Table 8, with the smallest member of each."""
MEASURED = ("top1", "top5", "parameters", "macs", "stem", "steps", "seconds", "label_bytes")


@dataclass(frozen=True)
class Student:
    """One network to train: on which images, with which labels, how."""

    arm: str
    arch: str
    labels: Labels
    seed: int
    cfg: PosttrainConfig

    @property
    def kinds(self) -> tuple[str, ...]:
        """Its one score."""
        return (self.labels,)

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that decide the trained network."""
        return training_identity(self.cfg)


def compared_students(inputs: Inputs, options: Options, device: torch.device) -> Compared[Student]:
    """All students that `options` ask for, of the file and of its baseline.

    Raises:
        UserError: if an option or a file cannot be used.
    """
    if options.finetune:
        raise ConfigError(
            f"--finetune: {inputs.file} holds class labels, on which networks are trained as a "
            "whole; leave it out"
        )
    kinds = label_kinds(options.labels or ["soft"])
    tuning = tuning_of(options.tuning)
    recipes = {
        arch: recipe_for(inputs, arch, tuning, options.epochs, options.overrides)
        for arch in options.archs_or(DEFAULT_ARCHS)
    }
    smallest = min((cfg for cfg, _ in recipes.values()), key=lambda cfg: cfg.micro_batch)
    data = {
        arm: open_for_training(path, kinds, smallest, device) for arm, path in inputs.arms.items()
    }
    students = [
        Student(arm, arch, labels, seed, recipes[arch].cfg)
        for arch in recipes
        for seed in range(options.seeds)
        for arm in data
        for labels in kinds
    ]
    return Compared(
        learners=students,
        tuning=tuning,
        kinds=kinds,
        arms=dict.fromkeys(data, ""),
        learnt_from="images",
        measured=MEASURED,
        key=partial(_key, inputs, data, tuning),
        units=lambda student: student.cfg.epochs,
        forecast=partial(_forecast, data),
        train=partial(_train, inputs, data, device),
        notes=partial(_notes, inputs, recipes, data, options.seeds, tuning),
        published=table_8(inputs.header),
    )


def _forecast(data: Mapping[str, DistilledDataset], own: Sequence[Student]) -> Forecast:
    cfg, images = own[0].cfg, data[own[0].arm]
    steps = steps_per_epoch(cfg, images)
    net = new_student(own[0].arch, images, own[0].seed)
    each = step_seconds(cfg, net, images, own[0].labels) * cfg.epochs * steps
    return Forecast(parameters(net), cfg.describe(steps), each * len(own))


def _train(
    inputs: Inputs,
    data: Mapping[str, DistilledDataset],
    device: torch.device,
    student: Student,
    checkpoint: Checkpoint,
    bar: Bar,
) -> Row:
    started, cfg, images = time.monotonic(), student.cfg, data[student.arm]
    net = new_student(student.arch, images, student.seed)
    after_epoch = partial(_show_epoch, bar, bar.done, f"{student.arch}, {student.arm}")
    train_student(
        cfg,
        net,
        images,
        student.labels,
        student.seed,
        device,
        checkpoint,
        after_epoch=after_epoch,
    )
    score = evaluate(net, inputs.val, device) if inputs.val is not None else None
    return {
        "arm": student.arm,
        "arch": student.arch,
        "labels": student.labels,
        "seed": student.seed,
        "top1": score.top1 if score else None,
        "top5": score.top5 if score else None,
        "parameters": parameters(net),
        "macs": macs(net, images.image_size),
        "stem": net.stem,
        "steps": cfg.epochs * steps_per_epoch(cfg, images),
        "seconds": round(time.monotonic() - started, 1),
        "label_bytes": images.label_bytes if student.labels == "soft" else 0,
        "training": student.identity,
    }


def _show_epoch(bar: Bar, before: int, note: str, epoch: int, scored: nn.Module) -> None:
    bar.done = before + epoch - 1
    bar.advance(note=note)


def _key(
    inputs: Inputs, data: Mapping[str, DistilledDataset], tuning: Tuning, student: Student
) -> dict[str, Any]:
    return {
        "app": "crossarch",
        "scdd": __version__,
        "file": data[student.arm].header.digest,
        "scored_on": inputs.val_digest,
        "tuning": tuning,
        "arch": student.arch,
        "arm": student.arm,
        "labels": student.labels,
        "seed": student.seed,
        "training": student.identity,
    }


def _notes(
    inputs: Inputs,
    recipes: Mapping[str, Recipe],
    data: Mapping[str, DistilledDataset],
    seeds: int,
    tuning: Tuning,
    rows: Mapping[Student, Row],
) -> list[str]:
    """What the numbers are, how every architecture was trained, how its net differs from stock."""
    first = next(iter(data.values()))
    soft = any(student.labels == "soft" for student in rows)
    scored = len(inputs.val.labels) if inputs.val is not None else 0
    trained = {
        arch: cfg.describe(steps_per_epoch(cfg, first)) for arch, (cfg, _) in recipes.items()
    }
    if tuning == "shared":
        how = f"Tuning shared, one for every architecture: {next(iter(trained.values()))}."
    else:
        how = "Tuning per-arch: that of the run's own student, with what a net needs beyond."
    lines = [
        score_line(inputs.header, scored, seeds, first.label_bytes if soft else 0),
        macs_line(inputs.header.image_size),
        "",
        how,
        "",
    ]
    stems = {student.arch: row["stem"] for student, row in rows.items()}
    for arch, recipe in recipes.items():
        facts = [trained[arch]] if tuning == "per-arch" else []
        facts += [recipe.why] if recipe.why else []
        facts += [f"net: {stems[arch]}"] if arch in stems else []
        lines.append(f"- {arch}: {'; '.join(facts)}")
    return lines
