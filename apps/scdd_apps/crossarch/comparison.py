"""Training every architecture on every file: planned, timed, resumed, one row each."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from scdd import __version__
from scdd.checkpoint import Checkpoint
from scdd.distilled import DistilledDataset
from scdd.errors import RunError
from scdd.posttraining import Labels, steps_per_epoch
from scdd.progress import Bar, duration
from scdd.run import RunDirectory
from scdd.stages.posttrain import new_student, open_for_training, train_student
from scdd.training import evaluate
from scdd_apps.crossarch.recipes import Student, settings_for
from scdd_apps.crossarch.results import Row, results_text
from scdd_apps.files import Inputs, Rows, training_identity
from scdd_apps.report import count_cell, write_results
from scdd_apps.report_cost import macs, parameters, step_seconds

DEFAULT_ARCHS = ("resnet18", "mobilenet_v3_large", "vit_tiny")
CHECKPOINT_MINUTES = 5.0


def compare(
    inputs: Inputs,
    archs: Sequence[str],
    kinds: Sequence[Labels],
    seeds: int,
    epochs: int | None,
    overrides: Sequence[str],
    device: torch.device,
) -> None:
    """Train every architecture on every file and kind of label; print and write the table.

    A row that was finished before, with the same file and settings, is not trained again. An
    architecture that fails becomes a row that says why, and the others go on.

    Raises:
        UserError: if an option or a file cannot be used.
        RunError: if every architecture failed.
    """
    archs = tuple(dict.fromkeys(archs))
    settings = {arch: settings_for(inputs, arch, epochs, overrides) for arch in archs}
    smallest = min(settings.values(), key=lambda cfg: cfg.micro_batch)
    data = {
        arm: open_for_training(path, kinds, smallest, device) for arm, path in inputs.arms.items()
    }
    students = [
        Student(arm, arch, labels, seed, settings[arch])
        for arch in archs
        for seed in range(seeds)
        for arm in data
        for labels in kinds
    ]
    with RunDirectory(inputs.out).locked():
        print(inputs.describe(), flush=True)
        rows, failures = _run(inputs, students, data, device)
        text = results_text(inputs, students, rows, failures, data, seeds)
        result = {
            "app": "crossarch",
            "file": str(inputs.file),
            "digest": inputs.header.digest,
            "rows": [rows[student] for student in students if student in rows],
            "errors": failures,
        }
        write_results(inputs.out, f"{inputs.header.dataset}: architectures", text, result, device)
    print(f"\n{text}\n\n{inputs.out / 'report.md'}, results.json")
    if len(failures) == len(archs):
        raise RunError(f"crossarch: every architecture failed; {next(iter(failures.values()))}")


def _run(
    inputs: Inputs,
    students: Sequence[Student],
    data: dict[str, DistilledDataset],
    device: torch.device,
) -> tuple[dict[Student, Row], dict[str, str]]:
    """Rows by student, and why an architecture failed by its name."""
    kept = Rows(inputs.out)
    keys = {student: _key(inputs, student, data[student.arm]) for student in students}
    rows = {student: row for student in students if (row := kept.find(keys[student]))}
    missing = [student for student in students if student not in rows]
    if rows:
        print(f"{len(rows)} of {len(students)} students were trained before")
    failures = _announce(missing, data)
    with Bar("crossarch", sum(student.cfg.epochs for student in missing)) as bar:
        for student in missing:
            before = bar.done
            if student.arch not in failures:
                checkpoint = Checkpoint(kept.path(keys[student], ".pt"), CHECKPOINT_MINUTES)
                try:
                    row = _train(inputs, student, data[student.arm], device, checkpoint, bar)
                except Exception as error:  # a net may fail in any way; the others are worth it
                    failures[student.arch] = _reason(student.arch, error)
                else:
                    kept.keep(keys[student], row)
                    rows[student] = row
                    checkpoint.remove()
            bar.done = before + student.cfg.epochs
    return rows, failures


def _announce(missing: Sequence[Student], data: dict[str, DistilledDataset]) -> dict[str, str]:
    """Print what will be trained and for how long; return which architectures cannot be."""
    failures: dict[str, str] = {}
    seconds = 0.0
    for arch in dict.fromkeys(student.arch for student in missing):
        own = [student for student in missing if student.arch == arch]
        cfg, images = own[0].cfg, data[own[0].arm]
        steps = steps_per_epoch(cfg, images)
        try:
            net = new_student(arch, images, own[0].seed)
            each = step_seconds(cfg, net, images, own[0].labels) * cfg.epochs * steps
            cost = f"{count_cell(parameters(net))} parameters"
        except Exception as error:
            failures[arch] = _reason(arch, error)
            continue
        seconds += each * len(own)
        print(
            f"{arch}: {cost}, {cfg.describe(steps)}; {len(own)} x about {duration(each)}",
            flush=True,
        )
    if seconds:
        print(f"about {duration(seconds)} in all, from the time of one step", flush=True)
    return failures


def _reason(arch: str, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    reason = f"{arch}: {lines[0] if lines else type(error).__name__}"
    print(f"error: {reason}", flush=True)
    return reason


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


def _key(inputs: Inputs, student: Student, data: DistilledDataset) -> dict[str, Any]:
    return {
        "app": "crossarch",
        "scdd": __version__,
        "file": data.header.digest,
        "scored_on": inputs.val_digest,
        "arch": student.arch,
        "arm": student.arm,
        "labels": student.labels,
        "seed": student.seed,
        "training": training_identity(student.cfg),
    }
