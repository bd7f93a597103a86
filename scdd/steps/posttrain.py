"""Step posttrain: distilled files to results.json."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from scdd.datasets.pixel_statistics import with_statistics
from scdd.distilled import DistilledDataset
from scdd.errors import RunError
from scdd.files import write_json
from scdd.posttraining import Labels, steps_per_epoch
from scdd.progress import Bar
from scdd.seeding import generator
from scdd.stages.posttrain import new_student, train_student
from scdd.steps.context import Arm, Context, check_later_steps
from scdd.training import evaluate


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
    # With enough students each rank trains its own; with fewer they share the batches of each.
    together = len(plan) < context.world.size
    mine = plan if together else context.world.share(plan)
    names = {row: rows / f"{row[0].step}-{row[1]}-{row[2]}.json" for row in mine}
    missing = [row for row in mine if not names[row].exists()]
    context.world.barrier()  # Before one of them is there, all ranks know which are not.
    finished = (len(mine) - len(missing)) * cfg.epochs
    with Bar(step, len(mine) * cfg.epochs, finished) as bar:
        for arm, labels, seed in missing:
            _train_row(context, step, arm, labels, seed, names[arm, labels, seed], bar, together)
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


def _train_row(
    context: Context,
    step: str,
    arm: Arm,
    labels: Labels,
    seed: int,
    row: Path,
    bar: Bar,
    together: bool,
) -> None:
    """Train one student and write its scores: those of the last epoch, and the best one apart."""
    cfg, device = context.cfg.posttrain, context.device
    data = DistilledDataset.open(context.run.path / arm.step / arm.file, device)
    val = with_statistics(context.dataset.val, data.mean, data.std)
    run_seed = student_seed(context.cfg.seed, seed)
    student = new_student(cfg.arch, data, run_seed)
    checkpoint = (context.shared_checkpoint if together else context.checkpoint)(step, row.stem)
    writes, best = context.world.leads or not together, row.with_suffix(".best")
    before = bar.done

    def after_epoch(epoch: int, scored: nn.Module) -> None:
        bar.done = before + epoch - 1
        bar.advance(note=f"{arm.name}, {labels} labels, seed {seed}")
        if writes and cfg.evaluate_every and epoch % cfg.evaluate_every == 0:
            top1 = evaluate(scored, val, device).top1
            context.run.log(step, arm=arm.name, labels=labels, seed=seed, epoch=epoch, top1=top1)
            _best_of(best, epoch, top1)

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
            together=together,
        )
    except RunError as error:
        raise RunError(f"{error}, and run again with --redo {step}") from error
    if together:
        context.world.barrier()  # All have loaded the checkpoint that is removed below.
    if not writes:
        return
    score = evaluate(student, val, device)
    record = {
        "arm": arm.name,
        "labels": labels,
        "seed": seed,
        "top1": score.top1,
        "top5": score.top5,
        "steps": cfg.epochs * steps_per_epoch(cfg, data),
        "label_bytes": data.label_bytes if labels == "soft" else 0,
    }
    if cfg.evaluate_every:
        record |= _best_of(best, cfg.epochs, score.top1)
    context.run.log(step, **record)
    write_json(row, record)
    best.unlink(missing_ok=True)
    checkpoint.remove()


def _best_of(path: Path, epoch: int, top1: float) -> dict[str, Any]:
    """The best of what was evaluated so far, the first of equals; a file keeps it over a kill."""
    found = {"best_top1": top1, "best_epoch": epoch}
    before = json.loads(path.read_text()) if path.exists() else found
    if before["best_top1"] >= top1:
        found = before
    write_json(path, found)
    return dict(found)
