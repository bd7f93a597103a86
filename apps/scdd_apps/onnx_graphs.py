"""A network as an ONNX graph: made from PyTorch, compared with it, run by ONNX Runtime."""

import json
from collections.abc import Iterable, Iterator, Mapping

import onnx
import onnxruntime
import torch
from onnx import ModelProto
from torch import Tensor, nn

from scdd import __version__
from scdd.errors import CheckpointError, ConfigError, RunError
from scdd.files import sha256_of
from scdd.seeding import generator
from scdd.tables import size
from scdd_apps.networks import Network

INPUT = "images"
LARGEST = 2**31
"""Bytes of a protocol buffer."""
MOST_APART = 1e-4
"""How far outputs may be from those of PyTorch, relative to the largest of the batch."""


class OnPixels(nn.Module):
    """A network with its normalisation in front: takes RGB values in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network.model
        for name, values in (("mean", network.mean), ("std", network.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] to logits [B, classes], or features of a backbone."""
        return self.network((pixels - self.mean) / self.std)


def to_onnx(network: Network) -> ModelProto:
    """Trace a network into a graph for batches of any size, with facts about it as metadata.

    Raises:
        ConfigError: if its weights are more than an ONNX file can hold.
        RunError: if PyTorch cannot express the network in ONNX.
    """
    taken = sum(value.nbytes for value in network.model.state_dict().values())
    if taken >= LARGEST:
        raise ConfigError(
            f"{network.path}: its weights take {size(taken)}, and an ONNX file holds less than "
            f"{size(LARGEST)}; choose a smaller network"
        )
    output = "logits" if network.classes else "features"
    example = torch.rand(2, 3, network.image_size, network.image_size)  # 1 would stay a constant
    try:
        program = torch.onnx.export(
            OnPixels(network).eval(),
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[output],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().partition("\n")[0]
        raise RunError(f"{network.arch}: PyTorch cannot write it as ONNX ({reason})") from error
    assert program is not None
    model = program.model_proto
    _forget_origin(model)
    model.producer_name, model.producer_version = "scdd", __version__
    side = network.image_size
    facts = {
        "input": f"float32 RGB [batch, 3, {side}, {side}] in [0, 1]; normalised inside",
        "arch": network.arch,
        "classes": list(network.classes),
        "mean": network.mean,
        "std": network.std,
        "image_size": side,
        "weights": sha256_of(network.path),
        "trained_on": network.trained_on,
    }
    describe(model, {name: value for name, value in facts.items() if value})
    return model


def describe(model: ModelProto, facts: Mapping[str, object]) -> None:
    """Add metadata: text as it is, all else as JSON."""
    for name, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props.add(key=name, value=text)


def facts_of(model: ModelProto) -> dict[str, str]:
    """The metadata."""
    return {entry.key: entry.value for entry in model.metadata_props}


def session(model: ModelProto) -> onnxruntime.InferenceSession:
    """Load a graph on the CPU, with as many threads as PyTorch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Several sessions take turns; one that spins while it waits would slow the others down.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def outputs_of(run: onnxruntime.InferenceSession, pixels: Tensor) -> Tensor:
    """Outputs [B, D] for RGB values in [0, 1], float32 [B, 3, S, S]."""
    return torch.from_numpy(run.run(None, {INPUT: pixels.numpy()})[0])


@torch.no_grad()
def check_same(network: Network, model: ModelProto) -> float:
    """Compare ONNX Runtime with PyTorch on noise and on patterns, in batches of several sizes.

    Returns:
        the largest difference, relative to the largest output of its batch in magnitude.

    Raises:
        CheckpointError: if outputs of the network are not finite.
        RunError: if it is above `MOST_APART`, or not a number.
    """
    ours, theirs = OnPixels(network).eval(), session(model)
    apart = 0.0
    for pixels in _probes(network.image_size):
        wanted = ours(pixels)
        if not wanted.isfinite().all():
            raise CheckpointError(
                f"{network.path}: its outputs are not finite for images in [0, 1], so its weights "
                "are of no use; nothing was written"
            )
        found = (outputs_of(theirs, pixels) - wanted).abs().max() / wanted.abs().max()
        if not found <= MOST_APART:  # also where it is nan
            raise RunError(
                f"{network.path}: ONNX Runtime gives other outputs than PyTorch for "
                f"{len(pixels)} images (relative difference {found:.1e}, at most {MOST_APART:.0e} "
                "wanted); nothing was written"
            )
        apart = max(apart, found.item())
    return apart


def _probes(size: int) -> Iterator[Tensor]:
    """Batches in [0, 1]: noise 1, 2 and 7 images long, and black, white, a ramp, a chequerboard."""
    draw = generator(0, "apps.onnx.check")
    for count in (1, 2, 7):
        yield torch.rand(count, 3, size, size, generator=draw)
    ramp = torch.linspace(0, 1, size).expand(3, size, size)
    at = torch.arange(size)
    board = ((at[:, None] + at) % 2).float().expand(3, size, size)
    yield torch.stack([torch.zeros_like(ramp), torch.ones_like(ramp), ramp, board])


def _forget_origin(model: ModelProto) -> None:
    """Drop what the exporter notes of each part: stack traces, with the paths of this machine."""
    graph = model.graph
    parts: Iterable[onnx.NodeProto] = (
        *(model, graph, *graph.node, *graph.value_info),
        *(*graph.input, *graph.output, *graph.initializer),
    )
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""
