"""How results are shown: cells, protocol lines, and the two files of a results folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from scdd.distilled import Header
from scdd.files import replacing, write_json
from scdd.run import environment
from scdd.tables import counted, mean_sd, size

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
    return (
        f"Top-1 % {real}, last epoch, {trained}. Recipe {header.recipe}, method "
        f"{header.method}, {header.count} images of {header.image_size} px, "
        f"{size(label_bytes)} of soft labels and views."
    )


def write_results(
    out: Path, title: str, text: str, result: dict[str, Any], device: torch.device
) -> None:
    """Write results.json and report.md into `out`."""
    measured = environment(str(device), torch.get_num_threads())
    write_json(out / "results.json", {**result, "environment": measured})
    versions = measured["versions"]
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{measured['processor']}, {counted(measured['cpu_threads'], 'thread')}"
    )
    footer = f"Measured on {where}; torch {versions['torch']}, scdd {versions['scdd']}."
    with replacing(out / "report.md") as temporary:
        temporary.write_text(f"# {title}\n\n{text}\n\n{footer}\n", encoding="utf-8")
