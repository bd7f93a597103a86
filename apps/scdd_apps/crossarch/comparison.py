"""Every architecture on every file: planned, trained, and written as tables and a plot."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch

from scdd.distributed import World, joined
from scdd.errors import RunError
from scdd.files import replacing
from scdd.progress import say
from scdd.run import RunDirectory
from scdd_apps.crossarch.compared import Compared, L, Row
from scdd_apps.crossarch.figure import draw_accuracy_over_parameters
from scdd_apps.crossarch.labelled import compared_students
from scdd_apps.crossarch.options import Options
from scdd_apps.crossarch.represented import compared_pupils
from scdd_apps.crossarch.results import (
    means_over_seeds,
    results_csv,
    results_record,
    results_text,
)
from scdd_apps.crossarch.training import train_missing
from scdd_apps.files import Inputs
from scdd_apps.report import write_results

FIGURE, CSV = "crossarch.png", "results.csv"


def compare(inputs: Inputs, options: Options, device: torch.device) -> None:
    """Train every architecture on every file and score it; print and write the table.

    A row that was finished before, with the same file and settings, is not trained again. An
    architecture that fails becomes a row that says why, and the others go on. Under torchrun each
    process trains a share of the rows, on its own device.

    Raises:
        UserError: if an option or a file cannot be used.
        RunError: if every architecture failed.
    """
    with joined() as world:
        device = world.device(device)
        if inputs.header.represented:
            _compare(inputs, compared_pupils(inputs, options, device), device, world)
        else:
            _compare(inputs, compared_students(inputs, options, device), device, world)


def _compare(inputs: Inputs, compared: Compared[L], device: torch.device, world: World) -> None:
    with RunDirectory(inputs.out).locked() if world.leads else nullcontext():
        say(inputs.describe())
        rows, failures = train_missing(inputs.out, compared, world)
        if world.leads:
            _write(inputs, compared, rows, failures, device)
    if world.leads and not rows:
        raise RunError(f"crossarch: every architecture failed; {next(iter(failures.values()))}")


def _write(
    inputs: Inputs,
    compared: Compared[L],
    rows: Mapping[L, Row],
    failures: Mapping[str, str],
    device: torch.device,
) -> None:
    """Print the table and write all that goes with it."""
    out, header, tuning = inputs.out, inputs.header, compared.tuning
    result: dict[str, Any] = results_record(rows, failures, tuning)
    text = results_text(compared, rows, failures)
    if compared.published is not None:
        quoted, result["published"] = compared.published
        text = f"{text}\n\n{quoted}"
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
        temporary.write_text(results_csv(compared, rows, failures), encoding="utf-8")
    print(f"\n{text}\n\n{out / names[0]}, {', '.join(names[1:])}")
