"""Writes a network as ONNX, once ONNX Runtime has been seen to agree with PyTorch."""

import os
from pathlib import Path

from scdd.errors import ConfigError, UserError
from scdd.files import replacing
from scdd.tables import size
from scdd_apps.networks import load_network
from scdd_apps.onnx_graphs import check_same, facts_of, to_onnx


def export_network(path: Path, form: str, out: Path | None) -> str:
    """Write the network that `path` holds as `form`; return what to say about it.

    Args:
        path: a network of a run or of `scdd-apps prune`.
        form: `onnx`.
        out: the file, which must not be there yet; not given: beside `path`.

    Raises:
        UserError: if an argument cannot be used.
        RunError: if the outputs differ from those of PyTorch, or the disk is full.
    """
    if form != "onnx":
        raise ConfigError(f"--format {form}: choose onnx")
    target = out or path.with_suffix(".onnx")
    if target.exists():
        raise UserError(f"{target}: is there already; choose another --out")
    network = load_network(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{target.parent}: cannot be made ({error.strerror}); choose another --out"
        ) from error
    if not os.access(target.parent, os.W_OK):
        raise UserError(f"{target.parent}: may not be written into; choose another --out")
    model = to_onnx(network)
    apart = check_same(network, model)
    with replacing(target) as temporary:
        temporary.write_bytes(model.SerializeToString())
    facts = facts_of(model)
    outputs = f"{len(network.classes)} logits" if network.classes else "features"
    return (
        f"{target}: {network.arch}, {size(target.stat().st_size)}\n"
        f"input {facts['input']}; output {outputs} an image\n"
        f"ONNX Runtime and PyTorch differ by at most {apart:.1e} of the largest output, on noise "
        "and patterns, in batches of 1, 2, 4 and 7"
    )
