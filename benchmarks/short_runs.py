"""Short runs of a preset, from which the cost of the whole one is told.

Networks, image sizes, batches, objectives and precision are the preset's own.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from stage_work import Sizes, Units, work

from scdd.config.load import check
from scdd.config.run import RunConfig
from scdd.datasets import Dataset
from scdd.models import create_model
from scdd.recovery.speed import worth_compiling

POINTS = ("short", "longer", "wider")
LONGER = 4
SHORT = {"squeeze steps": 16, "probe epochs": 1, "iterations": 25, "views": 25, "epochs": 10}
"""Counts of the short run on a CPU, for --scale 1."""
LEAST_STEPS = 4
"""Of an epoch of squeeze, in a short run."""
ON_GPU = 8
"""How many times more on a GPU, which would be done with those before it is warm."""
BATCHES_OF_GPU = 16
"""Batches of recovery in a short run on a GPU, which sees several in one pass."""


def sizes_of(dataset: Dataset, other: Dataset | None, most: int | None) -> Sizes:
    """Numbers of images, where of each class `most` are used; None: all."""

    def images(data: Dataset) -> int:
        counts = torch.bincount(data.train.labels)
        return int((counts if most is None else counts.clamp(max=most)).sum())

    train = images(dataset)
    squeezed = train if other is None else images(other)
    return Sizes(train, len(dataset.val), len(dataset.classes), squeezed)


def short_runs(
    cfg: RunConfig,
    dataset: Dataset,
    other: Dataset | None,
    full: Sizes,
    device: torch.device,
    scale: float,
) -> dict[str, tuple[dict[str, Any], dict[str, Units]]]:
    """The settings of every run that is measured, and its units of work; each only once."""
    scale *= ON_GPU if device.type == "cuda" else 1
    runs: dict[str, tuple[dict[str, Any], dict[str, Units]]] = {}
    for name in POINTS:
        settings, most = short_settings(cfg, dataset, other, full, device, scale, name)
        if settings in (known for known, _ in runs.values()):
            continue
        runs[name] = settings, work(check(settings, name), sizes_of(dataset, other, most))
    return runs


def short_settings(
    cfg: RunConfig,
    dataset: Dataset,
    other: Dataset | None,
    full: Sizes,
    device: torch.device,
    scale: float,
    name: str,
) -> tuple[dict[str, Any], int | None]:
    """The configuration of one run, and how many training images it has of each class at most."""
    longer, wider = LONGER if name == "longer" else 1, name == "wider"

    def count(what: str) -> int:
        return max(1, round(SHORT[what] * scale)) * longer

    settings = cfg.model_dump(mode="json")
    settings["ipc"] = _fewer_images(cfg, len(dataset.classes), device)
    datasets = [data for data in (dataset, other) if data is not None]
    most = _images_of_a_class(cfg, datasets, full, settings["ipc"])
    if most is not None:
        most *= 2 if wider else 1
        for key in ("dataset", "squeeze_dataset"):
            if settings[key] is not None:
                settings[key]["train_per_class"] = most
    sizes = sizes_of(dataset, other, most)
    trained = [(settings["squeeze"], sizes.squeezed)]
    trained += [(section, sizes.train) for section in settings["squeeze_labellers"]]
    if settings.get("squeeze_scorer"):
        trained.append((settings["squeeze_scorer"], sizes.train))
    _shorten_squeezes(trained, most is not None, wider, count("squeeze steps"))
    settings["probe"] |= {"floor": 0.0}
    settings["probe"]["epochs"] = min(cfg.probe.epochs, count("probe epochs"))
    for step, section in cfg.recoveries.items():
        turns = len(cfg.teachers_of(step))
        iterations = min(section.iterations, -(-count("iterations") // turns) * turns)
        settings[step] |= {
            "iterations": iterations,
            "warmup": min(section.warmup, iterations - 1),
            "merges": min(section.merges, iterations - 1),
            "compile": "on" if _compiled(cfg, step, full, device) else "off",
        }
    if cfg.condense is not None:
        least = min(cfg.condense.iterations, count("iterations"))
        settings["condense"] |= {"iterations": least}
    settings["relabel"] |= {"views": min(cfg.relabel.views, count("views")), "epochs": {}}
    training = cfg.posttrain
    epochs = min(training.epochs, count("epochs"))
    settings["posttrain"] |= {"epochs": epochs, "seeds": min(training.seeds, 2 if wider else 1)}
    if training.evaluate_every:
        settings["posttrain"]["evaluate_every"] = max(1, epochs // 4) if wider else epochs
    return settings, most


def _fewer_images(cfg: RunConfig, classes: int, device: torch.device) -> int:
    """Images per class that fill some batches of recovery."""
    batches = BATCHES_OF_GPU if device.type == "cuda" else 1
    largest = max((section.batch for section in cfg.recoveries.values()), default=0)
    return max(1, min(cfg.ipc, -(-batches * largest // classes)))


def _images_of_a_class(
    cfg: RunConfig, datasets: Sequence[Dataset], full: Sizes, ipc: int
) -> int | None:
    """Training images of each class of a short run; None: all, where there are few."""
    least = max(
        (
            max(LEAST_STEPS * section.batch, getattr(section.objective, "queue", 0))
            for section in cfg.squeezes.values()
            if section.checkpoint is None
        ),
        default=0,
    )
    classes = min(len(data.classes) for data in datasets)
    looked_at = [s.candidates for s in cfg.recoveries.values() if s.start == "rded"]
    wanted = max(ipc, math.ceil(least / classes), *looked_at, 1)
    smallest = min(int(torch.bincount(data.train.labels).min()) for data in datasets)
    if 2 * wanted <= smallest:
        return wanted
    # All, unless the cost of more than there are is to be told from two sizes.
    return None if full.train == len(datasets[0].train) else max(1, smallest // 2)


def _shorten_squeezes(
    trained: Sequence[tuple[dict[str, Any], int]], more_images: bool, wider: bool, steps: int
) -> None:
    """Cut the epochs of all pre-trainings to the same share, so that their mix stays as it is."""
    own = [(section, images) for section, images in trained if section["checkpoint"] is None]
    if not own:
        return
    kept = max(len(section["keep_epochs"]) for section, _ in own)
    share = min(
        1.0,
        max(
            max(kept, math.ceil(steps / max(1, images // section["batch"]))) / section["epochs"]
            for section, images in own
        ),
    )
    if wider and not more_images:
        share *= 2  # Else one epoch would show neighbours no more often.
    for section, _ in own:
        epochs = max(1, kept, round(share * section["epochs"]))
        epochs = min(epochs, section["epochs"])
        section["epochs"] = epochs
        section["keep_epochs"] = [*range(1, 1 + min(len(section["keep_epochs"]), epochs))]
        if section["knn_every"]:
            section["knn_every"] = 1 if wider else epochs
        section["collapse_below"] = 0.0
        if section["objective"].get("queue_from_epoch"):
            section["objective"]["queue_from_epoch"] = 0


def _compiled(cfg: RunConfig, step: str, full: Sizes, device: torch.device) -> bool:
    """Whether the whole run would compile its teachers."""
    size = cfg.dataset.image_size
    networks = cfg.teachers_of(step).values()
    teachers = [create_model(n.arch, full.classes, size, n.stem) for n in networks]
    return worth_compiling(cfg.recoveries[step], teachers, full.classes * cfg.ipc, size, device)
