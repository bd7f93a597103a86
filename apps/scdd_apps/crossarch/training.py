"""Training the students that are missing: announced, shared by processes, one file each."""

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scdd import __version__
from scdd.checkpoint import Checkpoint
from scdd.distilled import DistilledDataset
from scdd.distributed import World
from scdd.files import write_json
from scdd.posttraining import steps_per_epoch
from scdd.progress import Bar, duration, say
from scdd.stages.posttrain import new_student, train_student
from scdd.training import evaluate
from scdd_apps.crossarch.recipes import Student, Tuning
from scdd_apps.crossarch.results import Row
from scdd_apps.files import Inputs, Rows, training_identity
from scdd_apps.report import count_cell
from scdd_apps.report_cost import macs, parameters, step_seconds

CHECKPOINT_MINUTES = 5.0
FAILED = ".error"
"""Ends the name of the file that says why a row is not there."""


def train_missing(
    inputs: Inputs,
    students: Sequence[Student],
    data: Mapping[str, DistilledDataset],
    tuning: Tuning,
    device: torch.device,
    world: World,
) -> tuple[dict[Student, Row], dict[str, str]]:
    """Train every student that has no row yet; each process of `world` takes its share of them.

    An architecture that fails is left out from then on; the others go on.

    Returns:
        Rows by student, and why an architecture failed by its name: on the leading process those
        of all, on the others what they know.
    """
    kept = Rows(inputs.out)
    keys = {student: _key(inputs, student, data[student.arm], tuning) for student in students}
    missing = [student for student in students if kept.find(keys[student]) is None]
    world.barrier()  # Before one of them is there, all processes know which are not.
    if len(missing) < len(students):
        say(f"{len(students) - len(missing)} of {len(students)} students were trained before")
    failed = {student: kept.path(keys[student], FAILED) for student in missing}
    if world.leads:
        for path in failed.values():
            path.unlink(missing_ok=True)  # Of an earlier attempt.
        _announce(missing, data, failed, world.size)
    world.barrier()
    mine = world.share(missing)
    with Bar("crossarch", sum(student.cfg.epochs for student in mine)) as bar:
        for student in mine:
            before = bar.done
            if student.arch not in _reasons(failed):
                checkpoint = Checkpoint(kept.path(keys[student], ".pt"), CHECKPOINT_MINUTES)
                try:
                    row = _train(inputs, student, data[student.arm], device, checkpoint, bar)
                except Exception as error:  # a net may fail in any way; the others are worth it
                    _fail([student], error, failed)
                else:
                    kept.keep(keys[student], row)
                    checkpoint.remove()
            bar.done = before + student.cfg.epochs
    world.barrier()
    found = {student: kept.find(keys[student]) for student in students}
    return {student: row for student, row in found.items() if row}, _reasons(failed)


def _announce(
    missing: Sequence[Student],
    data: Mapping[str, DistilledDataset],
    failed: Mapping[Student, Path],
    processes: int,
) -> None:
    """Print what will be trained and for how long; an architecture that cannot be fails here."""
    seconds = 0.0
    for arch in dict.fromkeys(student.arch for student in missing):
        own = [student for student in missing if student.arch == arch]
        cfg, images = own[0].cfg, data[own[0].arm]
        steps = steps_per_epoch(cfg, images)
        try:
            net = new_student(arch, images, own[0].seed)
            each = step_seconds(cfg, net, images, own[0].labels) * cfg.epochs * steps
        except Exception as error:
            _fail(own, error, failed)
            continue
        seconds += each * len(own)
        say(
            f"{arch}: {count_cell(parameters(net))} parameters, {cfg.describe(steps)}; "
            f"{len(own)} x about {duration(each)}"
        )
    if seconds:
        shared = f" shared by {processes} processes" if processes > 1 else ""
        say(f"about {duration(seconds / processes)} in all{shared}, from the time of one step")


def _fail(students: Sequence[Student], error: Exception, failed: Mapping[Student, Path]) -> None:
    """Record why an architecture fails, where every process finds it."""
    arch, lines = students[0].arch, str(error).strip().splitlines()
    reason = f"{arch}: {lines[0] if lines else type(error).__name__}"
    print(f"error: {reason}", flush=True)
    for student in students:
        write_json(failed[student], {"error": reason})


def _reasons(failed: Mapping[Student, Path]) -> dict[str, str]:
    """By architecture, the first reason of those that are recorded so far."""
    reasons: dict[str, str] = {}
    for student, path in failed.items():
        if path.exists():
            reasons.setdefault(student.arch, json.loads(path.read_text(encoding="utf-8"))["error"])
    return reasons


def _train(
    inputs: Inputs,
    student: Student,
    data: DistilledDataset,
    device: torch.device,
    checkpoint: Checkpoint,
    bar: Bar,
) -> Row:
    started, cfg = time.monotonic(), student.cfg
    steps = cfg.epochs * steps_per_epoch(cfg, data)
    net = new_student(student.arch, data, student.seed)
    after_epoch = partial(_show_epoch, bar, bar.done, f"{student.arch}, {student.arm}")
    train_student(
        cfg,
        net,
        data,
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
        "macs": macs(net, data.image_size),
        "stem": net.stem,
        "steps": steps,
        "seconds": round(time.monotonic() - started, 1),
        "label_bytes": data.label_bytes if student.labels == "soft" else 0,
        "training": training_identity(cfg),
    }


def _show_epoch(bar: Bar, before: int, note: str, epoch: int, scored: nn.Module) -> None:
    bar.done = before + epoch - 1
    bar.advance(note=note)


def _key(
    inputs: Inputs, student: Student, data: DistilledDataset, tuning: Tuning
) -> dict[str, Any]:
    return {
        "app": "crossarch",
        "scdd": __version__,
        "file": data.header.digest,
        "scored_on": inputs.val_digest,
        "tuning": tuning,
        "arch": student.arch,
        "arm": student.arm,
        "labels": student.labels,
        "seed": student.seed,
        "training": training_identity(student.cfg),
    }
