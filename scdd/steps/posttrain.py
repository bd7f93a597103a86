"""Step posttrain: distilled files to results.json."""

import json
from pathlib import Path

from torch import nn

from scdd.datasets.pixel_statistics import with_statistics
from scdd.distilled import DistilledDataset
from scdd.errors import RunError
from scdd.files import write_json
from scdd.progress import Bar
from scdd.seeding import generator
from scdd.stages.posttrain import Labels, new_student, train_student
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
