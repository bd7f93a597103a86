"""How results are shown: cells, protocol lines, and the two files of a results folder."""

from collections.abc import Sequence
from typing import Any

import torch

from scdd.distilled import Header
from scdd.files import replacing, write_json
from scdd.run import environment
from scdd.tables import counted, mean_sd, size
from scdd_apps.files import Inputs

NOT_SCORED = "n/a (no --data)"


def score_cell(scores: Sequence[float | None]) -> str:
    """`81.2 +- 0.4`, or why there is no number."""
    known = [score for score in scores if score is not None]
    return mean_sd(known) if known else NOT_SCORED


def count_cell(count: float) -> str:
    """Parameters or multiply-accumulates for people: `812`, `9.23 M`, powers of 1000."""
    for unit in ("", " k", " M", " G"):
        if count < 1000:
            return f"{count:.0f}" if not unit else f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} T"


def score_line(header: Header, scored: int, seeds: int, label_bytes: int) -> str:
    """What the numbers of a table are."""
    real = f"on {scored} real validation images" if scored else "not measured"
    trained = counted(seeds, "seed") + (", mean and sd" if seeds > 1 else "")
    labels = f", {size(label_bytes)} of soft labels and views" if label_bytes else ""
    return (
        f"Top-1 % {real}, last epoch, {trained}. Recipe {header.recipe}, method "
        f"{header.method}, {header.count} images of {header.image_size} px{labels}."
    )


def macs_line(image_size: int) -> str:
    """What the column of multiply-accumulates counts."""
    return (
        "MACs: multiply-accumulates of convolutions and matrix products, one "
        f"{image_size}x{image_size} image."
    )


def write_results(
    inputs: Inputs, app: str, title: str, text: str, result: dict[str, Any], device: torch.device
) -> None:
    """Write report.md and results.json, which opens with what the numbers are of."""
    measured, out = environment(str(device), torch.get_num_threads()), inputs.out
    facts = {"app": app, **_facts(inputs)}
    write_json(out / "results.json", {**facts, **result, "environment": measured})
    versions = measured["versions"]
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{measured['processor']}, {counted(measured['cpu_threads'], 'thread')}"
    )
    footer = f"Measured on {where}; torch {versions['torch']}, scdd {versions['scdd']}."
    with replacing(out / "report.md") as temporary:
        temporary.write_text(f"# {title}\n\n{text}\n\n{footer}\n", encoding="utf-8")


def _facts(inputs: Inputs) -> dict[str, Any]:
    header, other = inputs.header, inputs.baseline_header
    return {
        "file": str(inputs.file),
        "digest": header.digest,
        "baseline": None if inputs.baseline is None else str(inputs.baseline),
        "baseline_digest": None if other is None else other.digest,
        "dataset": header.dataset,
        "method": header.method,
        "recipe": header.recipe,
        "images": header.count,
        "classes": len(header.class_names),
        "image_size": header.image_size,
        "val_images": 0 if inputs.val is None else len(inputs.val.labels),
        "scored_on": inputs.val_digest,
        **_probed(inputs),
    }


def _probed(inputs: Inputs) -> dict[str, Any]:
    """The real images that networks are probed on, where the file holds representations."""
    if inputs.train is None:
        return {}
    return {"train_images": len(inputs.train), "probed_on": inputs.train_digest}
