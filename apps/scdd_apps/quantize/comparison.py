"""Quantises one network with several sets of calibration images, measures all, keeps one."""

import math
from dataclasses import asdict
from functools import partial
from pathlib import Path

import onnxruntime
import torch
from onnx import ModelProto
from torch import Tensor

from scdd.datasets import ImageSource
from scdd.errors import ConfigError
from scdd.files import replacing
from scdd.progress import Bar, track
from scdd.run import RunDirectory
from scdd_apps.files import Inputs
from scdd_apps.networks import WANTED, Network
from scdd_apps.onnx_graphs import OnPixels, check_same, describe, outputs_of, session, to_onnx
from scdd_apps.quantize.calibration import calibration_images
from scdd_apps.quantize.int8 import METHODS, prepared, quantised
from scdd_apps.quantize.measures import BATCH, Run, labelled_images, qualities
from scdd_apps.quantize.results import Row, results_text
from scdd_apps.report import write_results
from scdd_apps.report_cost import latencies


def check_fits(network: Network, inputs: Inputs) -> None:
    """Refuse a network that is not for the images of the file.

    Raises:
        ConfigError: if classes or image sizes differ.
    """
    header, path = inputs.header, network.path
    if not network.classes:
        raise ConfigError(f"{path}: is a backbone without a classifier; {WANTED}")
    if network.classes != header.class_names:
        raise ConfigError(
            f"{path}: its classes ({_some(network.classes)}) are not those of {inputs.file} "
            f"({_some(header.class_names)}); give a network and a file of the same dataset"
        )
    if network.image_size != header.image_size:
        raise ConfigError(
            f"{path}: is for images of {network.image_size} px, but those of {inputs.file} have "
            f"{header.image_size} px; give a network and a file of the same size"
        )


def quantize_with(inputs: Inputs, network: Network, method: str, most: int) -> None:
    """Compare calibrations of the network; print and write the table; write one int8 network.

    Args:
        inputs: the distilled file and what goes with it.
        network: what to quantise.
        method: how the network that is written is calibrated, on the images of the file.
        most: calibration images a row, if the files have as many.

    Raises:
        UserError: if a file or the folder cannot be used.
        RunError: if ONNX Runtime gives other outputs than PyTorch.
    """
    if method not in METHODS:
        raise ConfigError(f"--method {method}: choose {', '.join(METHODS)}")
    check_fits(network, inputs)
    images = calibration_images(inputs, most)
    own, calibration = next(iter(images.items()))
    with RunDirectory(inputs.out).locked():
        print(f"{inputs.describe()}\n{network.path}: {network.arch}", flush=True)
        model = to_onnx(network)
        check_same(network, model)
        made = _quantise_all(model, images)
        rows = _measure(network, model, made, inputs.val, calibration)
        chosen = next(row for row in rows if (row["calibration"], row["method"]) == (own, method))
        chosen["file"] = f"{network.path.stem}-int8.onnx"
        target = inputs.out / chosen["file"]
        _write(target, made[own, method], f"{method}, {own} images", inputs.header.digest)
        text = results_text(inputs, network, rows, len(calibration))
        result = {
            "network": str(network.path),
            "arch": network.arch,
            "calibration_images": len(calibration),
            "onnxruntime": onnxruntime.__version__,
            "rows": rows,
        }
        title = f"{inputs.header.dataset}: {network.arch} in int8"
        write_results(inputs, "quantize", title, text, result, torch.device("cpu"))
    print(f"\n{text}\n\n{target}, report.md, results.json")


def _some(classes: tuple[str, ...]) -> str:
    return f"{len(classes)}: {', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''}"


def _quantise_all(
    model: ModelProto, images: dict[str, Tensor]
) -> dict[tuple[str, str], ModelProto]:
    """Int8 graphs by the name of their calibration images and the method."""
    ready, made = prepared(model), {}
    with Bar("quantize", len(images) * len(METHODS)) as bar:
        for arm, calibration in images.items():
            for method in METHODS:
                made[arm, method] = quantised(ready, calibration, method)
                bar.advance(note=f"{arm}, {method}")
    return made


@torch.inference_mode()
def _measure(
    network: Network,
    model: ModelProto,
    made: dict[tuple[str, str], ModelProto],
    val: ImageSource | None,
    instead: Tensor,
) -> list[Row]:
    """A row for PyTorch, for ONNX and for each int8 graph, on `val`, or `instead` of it."""
    names: list[tuple[str, str | None, str | None]]
    names = [("fp32 PyTorch", None, None), ("fp32 ONNX", None, None)]
    names += [("int8", *key) for key in made]
    graphs = [model, *made.values()]
    sizes = [network.path.stat().st_size, *(graph.ByteSize() for graph in graphs)]
    runs: list[Run] = [OnPixels(network).eval()]
    runs += [partial(outputs_of, session(graph)) for graph in graphs]
    batches = math.ceil((len(instead) if val is None else len(val)) / BATCH)
    measured = zip(
        names,
        sizes,
        qualities(runs, track(labelled_images(val, instead), batches, "score")),
        latencies(runs, instead[:1].float() / 255),
        strict=True,
    )
    return [
        {
            **dict(zip(("network", "calibration", "method"), name, strict=True)),
            "bytes": count,
            "latency_ms": latency._asdict(),
            **asdict(quality),
        }
        for name, count, quality, latency in measured
    ]


def _write(target: Path, model: ModelProto, calibration: str, digest: str) -> None:
    describe(model, {"calibration": calibration, "calibrated_on": digest})
    with replacing(target) as temporary:
        temporary.write_bytes(model.SerializeToString())
