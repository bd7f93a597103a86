"""Static int8 quantisation of an ONNX graph by ONNX Runtime."""

import contextlib
import io
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
from onnx import ModelProto
from onnxruntime.quantization import (
    CalibrationMethod,
    QDQQuantizer,
    QuantType,
    create_calibrator,
    quant_pre_process,
)
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from torch import Tensor

from scdd_apps.onnx_graphs import INPUT, describe, facts_of

CHUNK = 8
"""Images whose activations are in memory at a time."""

METHODS: dict[str, tuple[CalibrationMethod, dict[str, Any]]] = {
    "minmax": (CalibrationMethod.MinMax, {}),
    # Not the defaults of ONNX Runtime. A range that is symmetric about 0 wastes half of the steps
    # after a ReLU; and entropy has one range to choose from where it has as many bins as steps.
    # With twice as many it may cut half of the range; with more its search takes minutes.
    "percentile": (CalibrationMethod.Percentile, {"symmetric": False, "percentile": 99.99}),
    "entropy": (CalibrationMethod.Entropy, {"num_bins": 256, "num_quantized_bins": 128}),
}
"""How the range of an activation is found: the calibrator of ONNX Runtime and its settings."""


def prepared(model: ModelProto) -> ModelProto:
    """Fold constants and BatchNorm and infer shapes, which quantisation relies on."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        onnx.save(model, before)
        # The exporter has written symbolic shapes already.
        quant_pre_process(before, after, skip_symbolic_shape=True)
        return onnx.load(after)


def quantised(model: ModelProto, images: Tensor, method: str) -> ModelProto:
    """Quantise a prepared graph: uint8 activations, int8 weights with a scale per output channel.

    The normalisation of the input and layer norms stay in float32.

    Args:
        model: from `prepared`; it is not changed.
        images: uint8 [N, 3, S, S], what activation ranges are measured on.
        method: a key of `METHODS`.
    """
    kind, settings = METHODS[method]
    # A scale per channel is not defined for layer norms; they stay in float32, as they run anyway.
    operators = sorted({*QDQRegistry, *QLinearOpsRegistry} - {"LayerNormalization"})
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        augmented = str(Path(folder) / "augmented.onnx")
        calibrator = create_calibrator(path, operators, augmented, kind, extra_options=settings)
        for part in images.split(CHUNK):
            feed = iter([{INPUT: (part.float() / 255).numpy()}])
            calibrator.collect_data(SimpleNamespace(get_next=partial(next, feed, None)))
        ranges = calibrator.compute_data()
        quantizer = QDQQuantizer(
            onnx.load(path),
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=normalisation(model),
            op_types_to_quantize=operators,
            extra_options={},
        )
        quantizer.quantize_model()
    quantizer.model.topological_sort()
    found: ModelProto = quantizer.model.model
    del found.metadata_props[:]
    facts = facts_of(model)
    describe(found, {name: text for name, text in facts.items() if not name.startswith("onnx.")})
    describe(found, {"int8": "static QDQ, uint8 activations, int8 weights per channel"})
    return found


def normalisation(model: ModelProto) -> list[str]:
    """Names of the nodes that take the mean from the input and divide by the deviation."""
    found, tensor = [], INPUT
    for kind in ("Sub", "Div"):
        node = next(n for n in model.graph.node if n.op_type == kind and n.input[0] == tensor)
        found.append(node.name)
        tensor = node.output[0]
    return found
