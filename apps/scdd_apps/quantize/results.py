"""The table of `scdd-apps quantize`: a network a row."""

from collections.abc import Sequence
from typing import Any

import torch

from scdd.tables import counted, size, table
from scdd_apps.files import Inputs
from scdd_apps.networks import Network
from scdd_apps.report import NOT_SCORED

Row = dict[str, Any]


def results_text(inputs: Inputs, network: Network, rows: Sequence[Row], count: int) -> str:
    """Table and protocol: all that belongs under the heading of the report.

    Args:
        inputs: the distilled file and what goes with it.
        network: what was quantised.
        rows: the first is what the others were held against; one names the file it is in.
        count: calibration images a row.
    """
    headers = ["network", "calibration", "range", "size", "p50 ms", "p90 ms", "top-1 %"]
    headers += ["same class %", "logit error %"]
    images = (
        f"{len(inputs.val.labels)} real validation images"
        if inputs.val is not None
        else f"{count} images of the file, on which its own rows were calibrated"
    )
    chosen = next(row for row in rows if "file" in row)
    return "\n".join(
        [
            table(headers, [_cells(row) for row in rows]),
            "",
            f"{network.arch}, {len(network.classes)} classes, {network.image_size} px; {images}. "
            "Same class as fp32 PyTorch; logit error: norm of the difference to it over its norm. "
            f"Latency: one image, CPU, {counted(torch.get_num_threads(), 'thread')}, the networks "
            "taking turns, after a warm-up. int8: static QDQ, uint8 activations, int8 weights per "
            "output channel.",
            f"Calibrated on {count} images a row, whole as they are stored, no views, crops or "
            "mixtures; noise: Gaussian pixels with the mean and deviation of the real ones.",
            f"{chosen['file']} is {chosen['method']} on {chosen['calibration']} images, as "
            "--method says, whatever the table says.",
        ]
    )


def _cells(row: Row) -> list[str]:
    top1 = NOT_SCORED if row["top1"] is None else f"{row['top1']:.1f}"
    return [
        row["network"],
        row["calibration"] or "-",
        row["method"] or "-",
        size(row["bytes"]),
        f"{row['latency_ms']['p50']:.2f}",
        f"{row['latency_ms']['p90']:.2f}",
        top1,
        f"{row['agreement']:.1f}",
        f"{row['logit_error']:.2f}",
    ]
