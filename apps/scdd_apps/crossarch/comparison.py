"""Every architecture on every file: planned, trained, and written as tables and a plot."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch

from scdd.distributed import joined
from scdd.errors import RunError
from scdd.files import replacing
from scdd.posttraining import Labels
from scdd.progress import say
from scdd.run import RunDirectory
from scdd.stages.posttrain import open_for_training
from scdd_apps.crossarch.figure import draw_accuracy_over_parameters
from scdd_apps.crossarch.published import (
    is_setting_of_table_8,
    published_record,
    published_text,
)
from scdd_apps.crossarch.recipes import Student, Tuning, recipe_for
from scdd_apps.crossarch.results import (
    Row,
    means_over_seeds,
    results_csv,
    results_record,
    results_text,
)
from scdd_apps.crossarch.training import train_missing
from scdd_apps.files import Inputs
from scdd_apps.report import write_results

DEFAULT_ARCHS = (
    "resnet18",
    "regnet_x_400mf",
    "squeezenet1_0",
    "mobilenet_v3_large",
    "shufflenet_v2_x0_5",
    "vit_tiny",
)
"""The families of SC-DD's Table 8, with the smallest member of each."""
FIGURE, CSV = "crossarch.png", "results.csv"


def compare(
    inputs: Inputs,
    archs: Sequence[str],
    kinds: Sequence[Labels],
    seeds: int,
    tuning: Tuning,
    epochs: int | None,
    overrides: Sequence[str],
    device: torch.device,
) -> None:
    """Train every architecture on every file and kind of label; print and write the table.

    A row that was finished before, with the same file and settings, is not trained again. An
    architecture that fails becomes a row that says why, and the others go on. Under torchrun each
    process trains a share of the rows, on its own device.

    Raises:
        UserError: if an option or a file cannot be used.
        RunError: if every architecture failed.
    """
    archs = tuple(dict.fromkeys(archs))
    recipes = {arch: recipe_for(inputs, arch, tuning, epochs, overrides) for arch in archs}
    smallest = min((cfg for cfg, _ in recipes.values()), key=lambda cfg: cfg.micro_batch)
    with joined() as world:
        device = world.device(device)
        data = {
            arm: open_for_training(path, kinds, smallest, device)
            for arm, path in inputs.arms.items()
        }
        students = [
            Student(arm, arch, labels, seed, recipes[arch].cfg)
            for arch in archs
            for seed in range(seeds)
            for arm in data
            for labels in kinds
        ]
        with RunDirectory(inputs.out).locked() if world.leads else nullcontext():
            say(inputs.describe())
            rows, failures = train_missing(inputs, students, data, tuning, device, world)
            if not world.leads:
                return
            text = results_text(inputs, students, rows, failures, data, recipes, seeds, tuning)
            _write(inputs, students, rows, failures, tuning, text, device)
    if not rows:
        raise RunError(f"crossarch: every architecture failed; {next(iter(failures.values()))}")


def _write(
    inputs: Inputs,
    students: Sequence[Student],
    rows: Mapping[Student, Row],
    failures: Mapping[str, str],
    tuning: Tuning,
    text: str,
    device: torch.device,
) -> None:
    """Print the table and write all that goes with it."""
    out, header = inputs.out, inputs.header
    result = results_record(rows, failures, tuning)
    if is_setting_of_table_8(header):
        text = f"{text}\n\n{published_text()}"
        result["published"] = published_record()
    means, picture = means_over_seeds(rows), ""
    names = ["report.md", "results.json", CSV]
    if any(mean.top1 is not None for mean in means):
        title = f"trained on {header.count} images of {header.image_size} px, tuning {tuning}"
        draw_accuracy_over_parameters(out / FIGURE, means, title)
        picture = f"\n\n![top-1 over parameters]({FIGURE})"
        names.append(FIGURE)
    title = f"{header.dataset}: architectures"
    write_results(inputs, "crossarch", title, text + picture, result, device)
    with replacing(out / CSV) as temporary:
        temporary.write_text(results_csv(students, rows, failures, tuning), encoding="utf-8")
    print(f"\n{text}\n\n{out / names[0]}, {', '.join(names[1:])}")
