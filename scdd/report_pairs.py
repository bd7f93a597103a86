"""The end of a run of the second family: what its pairs teach, as report.md, and a picture."""

from collections.abc import Sequence
from typing import Any

from scdd.checkpoint import load_weights
from scdd.config.condense_pairs import PretrainConfig
from scdd.distilled import DistilledFile, RepresentationDataset
from scdd.distilled.bill import describe_bill
from scdd.gallery import draw_views
from scdd.report import read_scores, write_report
from scdd.steps import Context
from scdd.tables import counted, mean_sd, table

REMARKS = {
    "distilled": (
        "- `distilled`: networks learnt the representations of the pairs by regression; a linear",
        "  probe on all real training images tells what their features are worth.",
    ),
    "distilled, targets stored": (
        "- `distilled, targets stored`: with the targets that the approximation networks stand",
        "  for; the difference is their price. These targets are on no bill.",
    ),
    "random real": (
        "- `random real`: N real images, with the backbone's representations or with their",
        "  classes.",
    ),
    "no pre-training": ("- `no pre-training`: the probe on a network as it was initialised.",),
    "fine-tuning": (
        "- fine-tuning: all weights and a new classifier learn from the real training images, at",
        "  the last step; with `no pre-training` that is training from scratch.",
    ),
}
"""What a row or column is; said where there is one."""
TIME_REMARK = "- A step that was interrupted counts the time since it was last taken up."


def run_report_pairs(context: Context, step: str) -> tuple[str, ...]:
    """Scores, bill and times -> report.md; the first images of the pairs -> gallery.png."""
    cfg, run, folder = context.cfg, context.run, context.run.folder(step)
    assert cfg.pairs_from is not None and cfg.pretrain is not None
    results = read_scores(run.path / "pretrain" / "results.json", "pretrain", "tasks")
    _, teacher = load_weights(run.path / "squeeze" / "backbone.safetensors")
    files = {
        "distilled": run.path / cfg.pairs_from / "distilled.h5",
        "random real": run.path / "baseline_pairs" / "random_real.h5",
    }
    draw_views(
        folder / "gallery.png",
        {name: RepresentationDataset.open(path) for name, path in files.items()},
    )
    with DistilledFile(files["distilled"]) as file:
        budget_n = file.header.budget_n
        assert budget_n is not None
        bill = describe_bill(file.bill, budget_n)
    lines = [
        f"# {cfg.dataset.name}: {cfg.method}, a budget of {budget_n} images",
        "",
        *task_lines(results),
        pretrain_line(cfg.pretrain, cfg.recipe, results),
        f"Stored: {bill}.",
        f"Teacher: {teacher['arch']}, {teacher['objective']}"
        + ("." if teacher["epoch"] is None else f", {counted(teacher['epoch'], 'epoch')}."),
        "",
        *remarks(results),
        TIME_REMARK,
        "",
        "![one row a view](gallery.png)",
        "",
    ]
    write_report(context, folder, lines)
    return ("report.md", "gallery.png")


def task_lines(results: dict[str, Any]) -> list[str]:
    """The table of each task, under a heading that says what it is where there are several."""
    tasks, lines = results["tasks"], []
    for number, task in enumerate(tasks):
        if len(tasks) > 1:
            which = "the images that were distilled" if number == 0 else "transfer"
            lines += [f"## {task['name']}: {which}", ""]
        rows = [row for row in results["rows"] if row["task"] == task["name"]]
        lines += [scores_table(rows), ""]
        if len(tasks) > 1:
            lines += [describe_task(task), ""]
    return [*lines, "## Protocol", ""] if len(tasks) > 1 else lines


def remarks(results: dict[str, Any]) -> list[str]:
    """What the rows and columns that there are mean."""
    there = {row[name] for row in results["rows"] for name in ("arm", "by")}
    return [line for what, lines in REMARKS.items() if what in there for line in lines]


def describe_task(task: dict[str, Any]) -> str:
    """Which dataset a task is, and how large."""
    return (
        f"Dataset {task['dataset']}: {task['classes']} classes, {task['train_images']} real "
        f"training images, {task['val_images']} real validation images."
    )


def scores_table(rows: Sequence[dict[str, Any]]) -> str:
    """Top-1 in per cent of one task, mean +- sd over the networks of each arm."""
    arms = {row["arm"]: str(row["pairs"] or "-") for row in rows}
    kinds = dict.fromkeys(row["by"] for row in rows)
    lines = [
        [
            arm,
            seen,
            *(
                mean_sd([row["top1"] for row in rows if (row["arm"], row["by"]) == (arm, kind)])
                for kind in kinds
            ),
        ]
        for arm, seen in arms.items()
    ]
    return table(["learnt from", "images seen", *kinds], lines)


def pretrain_line(cfg: PretrainConfig, recipe: str, results: dict[str, Any]) -> str:
    """Everything that moves the numbers, in one sentence."""
    scored = " and ".join(str(task["val_images"]) for task in results["tasks"])
    return (
        f"Top-1 % on {scored} real validation images. Recipe {recipe}; {cfg.arch}, "
        f"{cfg.describe()}; {counted(cfg.seeds, 'seed')}."
    )
