"""The end of a run: the honest table, as report.md and on the terminal, and the pictures."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from scdd.checkpoint import load_weights
from scdd.config.methods import IMAGES_OF
from scdd.config.posttrain import PosttrainConfig
from scdd.config.run import RunConfig
from scdd.distilled import DistilledDataset, RepresentationDataset, read_header
from scdd.errors import UserError
from scdd.files import replacing
from scdd.gallery import draw_gallery
from scdd.progress import duration
from scdd.steps import Arm, Context
from scdd.tables import counted, mean_sd, size, table

INTERRUPTED = "- A step that was interrupted counts the time since it was last taken up."


def run_report(context: Context, step: str) -> tuple[str, ...]:
    """Scores, files and times -> report.md, gallery.png and the losses of every recovery."""
    run, folder = context.run, context.run.folder(step)
    results = read_scores(run.path / "posttrain" / "results.json", "posttrain")
    _, teacher = load_weights(run.path / "probe" / "teacher.safetensors")
    table_text = accuracy_table(context, results)
    protocol = protocol_line(context.cfg.posttrain, context.cfg.recipe, results)
    head = "its own classifier" if teacher["solver"] == "given" else "linear probe on all labels"
    elsewhere = "" if context.cfg.squeeze_dataset is None else " of other images (squeeze_dataset)"
    epochs = "" if teacher["epoch"] is None else f", {teacher['epoch']} epochs"
    origin = "loaded weights" if teacher["objective"] == "unknown" else teacher["objective"]
    teacher_line = (
        f"Teacher ({teacher['arch']}, {origin}{epochs}{elsewhere}, {head}): "
        f"{teacher['val_top1']:.1f} % of the same validation images."
    )
    draw_gallery(
        folder / "gallery.png",
        {arm.name: DistilledDataset.open(run.path / arm.step / arm.file) for arm in context.arms()},
    )
    losses = _loss_pictures(context, folder)
    lines = [
        f"# {context.cfg.dataset.name}: {context.cfg.method}, {_count(context)}",
        "",
        table_text,
        "",
        protocol,
        teacher_line,
        "",
        *_remarks(context),
        "",
        f"![{'one row a class' if context.cfg.pairs_from is None else 'images'}](gallery.png)",
        "",
        *_recovery(losses),
    ]
    write_report(context, folder, lines)
    return ("report.md", "gallery.png", *losses)


def write_report(context: Context, folder: Path, lines: Sequence[str]) -> None:
    """Write report.md into a folder: the lines, and below them what the run took."""
    below = ["## Time and memory", "", time_table(context), "", _environment_line(context), ""]
    with replacing(folder / "report.md") as temporary:
        temporary.write_text("\n".join([*lines, *below]), encoding="utf-8")


def _count(context: Context) -> str:
    """How many images the method has made, in words."""
    cfg = context.cfg
    if cfg.condense_pairs is not None:
        images = read_header(context.run.path / "relabel" / "distilled.h5").count
        return f"{images} images out of a budget of {cfg.condense_pairs.budget_n}"
    if cfg.select is not None and not cfg.select.balanced:
        return f"{cfg.ipc * len(context.dataset.classes)} images of all classes together"
    return f"{cfg.ipc} images per class"


def _loss_pictures(context: Context, folder: Path) -> list[str]:
    """Names of the pictures of losses, copied to where the links of the report find them."""
    names = []
    for step in context.step_names:
        drawn = context.run.path / step / "losses.png"
        if drawn.exists():
            names.append(f"{step}_{drawn.name}")
            with replacing(folder / names[-1]) as temporary:
                shutil.copyfile(drawn, temporary)
    return names


def _recovery(losses: list[str]) -> list[str]:
    if not losses:
        return []
    return [
        "## Recovery",
        "",
        f"The losses and the distance of every BatchNorm layer by iteration: {', '.join(losses)}.",
        "",
        *(f"![losses and distances over the iterations]({name})" for name in losses),
        "",
    ]


def read_scores(path: Path, step: str, *more: str) -> dict[str, Any]:
    """Read the results.json that a step has made, in which `more` keys have to be.

    Raises:
        UserError: if it is damaged.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        assert all(results[name] for name in ("rows", "val_images", *more))
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"{path}: is damaged; make it again with --redo {step}") from error
    return dict(results)


def print_report(run: Path) -> None:
    """Print the tables of a finished run, and where its files are."""
    text = (run / "report" / "report.md").read_text(encoding="utf-8")
    print("\n" + "\n".join(line for line in text.splitlines() if not line.startswith("![")))
    names = ("distilled.h5", "random_real.h5", "gallery.png", "report.md")
    print(f"Files: {run}/{', '.join(name for name in names if (run / name).exists())}")


def accuracy_table(context: Context, results: dict[str, Any]) -> str:
    """Top-1 in per cent, mean +- sd over seeds: soft beside soft, hard beside hard."""
    kinds = context.cfg.posttrain.labels
    rows = []
    for arm in context.arms():
        scores = [
            mean_sd(
                [
                    row["top1"]
                    for row in results["rows"]
                    if row["arm"] == arm.name and row["labels"] == kind
                ]
            )
            for kind in kinds
        ]
        label_bytes = max(
            (row["label_bytes"] for row in results["rows"] if row["arm"] == arm.name), default=0
        )
        rows.append([arm.name, real_pixels(context.cfg, arm), *scores, size(label_bytes)])
    headers = ["images", "real pixels", *(f"{kind} labels" for kind in kinds), "label bytes"]
    return table(headers, rows)


def protocol_line(cfg: PosttrainConfig, recipe: str, results: dict[str, Any]) -> str:
    """Everything that moves the numbers, in one sentence."""
    steps = results["rows"][0]["steps"] // cfg.epochs
    return (
        f"Top-1 % on {results['val_images']} real validation images at the last epoch. "
        f"Recipe {recipe}; student {cfg.arch}, {cfg.describe(steps)}; {counted(cfg.seeds, 'seed')}."
    )


def time_table(context: Context) -> str:
    """Seconds and peak memory of every finished step."""
    rows = []
    for folder in context.step_names:
        done = context.run.done(folder)
        if done is None:
            continue
        peak = done["peak_bytes"]
        memory = " / ".join(f"{size(value)} {name}" for name, value in peak.items())
        rows.append([folder, duration(done["seconds"]), memory])
    return table(["step", "time", "peak memory"], rows)


def real_pixels(cfg: RunConfig, arm: Arm) -> str:
    """Whether real pixels are in the images of an arm."""
    if arm.step == "baseline" or cfg.images_from == "select":
        return "yes"
    section = (cfg.condense or cfg.recover) if arm.step == "relabel" else cfg.recover_real
    start = section.start if section is not None else "real"
    return {"noise": "no", "real": "start only"}.get(start, f"start only ({start})")


def _remarks(context: Context) -> list[str]:
    if context.cfg.condense_pairs is not None:
        return [
            *_origin_of_pairs(context),
            "- Soft labels are the teacher's logits on stored views. There is no hard label: what",
            "  class an image shows is the teacher's guess, which its logits hold already.",
            INTERRUPTED,
        ]
    return [
        *_origin(context.cfg),
        "- Soft labels are the teacher's logits on stored views; hard labels are the classes,",
        "  on the same views and for the same number of steps.",
        INTERRUPTED,
    ]


def _origin_of_pairs(context: Context) -> list[str]:
    """Where the images of the rows come from, where they were learnt without classes."""
    cfg = context.cfg
    assert cfg.pairs_from is not None
    data = RepresentationDataset.open(context.run.path / cfg.pairs_from / "distilled.h5")
    return [
        f"- `distilled` is what {IMAGES_OF[cfg.method]} has learnt, without classes, so that "
        "networks learn the",
        f"  backbone's representations, in 8 bits: {data.cut(0)}.",
        "  `random real` is the untouched training images that it started from: what it has to",
        "  be compared with, under the same labels and the same training. In the picture every",
        "  image has the place of the one that it started from.",
    ]


def _origin(cfg: RunConfig) -> list[str]:
    """Where the images of the rows come from."""
    if not cfg.has_baseline:
        return [
            "- `distilled` is random untouched training images: what every other method has to be",
            "  compared with, under the same labels and the same training.",
        ]
    if cfg.condense is not None:
        start = "noise" if cfg.condense.start == "noise" else "random real images"
        return [
            f"- `distilled` starts from {start} and is matched to all real images in untrained",
            "  networks. `random real` is untouched training images: what it has to be compared",
            "  with, under the same labels and the same training.",
        ]
    if cfg.recover is None:
        return [
            f"- `distilled` is untouched training images, chosen by {cfg.method}. `random real` is",
            "  random ones: what the others have to be compared with, under the same labels and",
            "  the same training.",
        ]
    start = (
        "- `distilled` starts from noise: no real pixel is in it."
        if cfg.recover.start == "noise"
        else f"- `distilled` starts from real images here (recover.start = {cfg.recover.start})."
    )
    if cfg.recover_real is None:
        return [
            f"{start} `random real` is untouched",
            "  training images: what the other row has to be compared with, under the same",
            "  labels and the same training.",
        ]
    return [
        f"{start} `real start` begins with real",
        "  images and changes them. `random real` is untouched training images: what the other",
        "  rows have to be compared with, under the same labels and the same training.",
    ]


def _environment_line(context: Context) -> str:
    """What the times were measured on."""
    path = context.run.path / "environment.json"
    environment = json.loads(path.read_text(encoding="utf-8"))
    name = (
        torch.cuda.get_device_name(context.device)
        if context.device.type == "cuda"
        else f"{environment['processor']}, {counted(environment['cpu_threads'], 'thread')}"
    )
    versions = environment["versions"]
    return f"Measured on {name}; torch {versions['torch']}, scdd {versions['scdd']}."
