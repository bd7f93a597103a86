"""The trained network of a user that is to be pruned, out of a file and without running code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from scdd.distilled import Header
from scdd.errors import CheckpointError
from scdd.foreign.read import read
from scdd.models import create_model, recreate

COUNTER = "num_batches_tracked"


def load_start(path: Path, arch: str, header: Header) -> nn.Module:
    """Load weights of `arch` for the classes and images of a distilled file; in eval mode.

    A file of scdd says itself what it holds. Any other is a state dict of the network that
    `create_model` builds for this image size, with or without a key around it.

    Raises:
        CheckpointError: if the file holds code, is damaged, or is of another architecture, class
            count or image size, or was pruned before.
    """
    contents = read(path)
    classes, size = len(header.class_names), header.image_size
    if contents.about is not None:
        _check_facts(path, contents.about, arch, header)
        model = recreate({**contents.about, "num_classes": classes, "image_size": size})
        states = [contents.states[""]]
    else:
        model = create_model(arch, classes, size)
        states = list(contents.states.values())
    faults = [_fault(model, state, classes) for state in states]
    if all(faults):
        raise CheckpointError(
            f"{path}: {min(faults, key=len)}; give the weights of a {arch} of {classes} classes "
            f"as scdd builds it for {size} px (geometry: {model.stem})"
        )
    model.load_state_dict(
        {**model.state_dict(), **states[faults.index("")]},
    )
    return model.eval()


def _check_facts(path: Path, about: Mapping[str, Any], arch: str, header: Header) -> None:
    classes, size = len(header.class_names), header.image_size
    if "pruning_history" in about:
        raise CheckpointError(f"{path}: was pruned before; give the network before pruning")
    if "arch" not in about:
        raise CheckpointError(
            f"{path}: does not say which network it is for; give the teacher.safetensors of a run"
        )
    if about["arch"] != arch:
        raise CheckpointError(f"{path}: holds a {about['arch']}; give --arch {about['arch']}")
    theirs, side = about.get("num_classes", classes), about.get("image_size", size)
    if theirs != classes:
        raise CheckpointError(
            f"{path}: tells {theirs} classes apart, and the distilled file {classes}; give a "
            "network for the same classes"
        )
    if "classes" in about and tuple(about["classes"]) != header.class_names:
        raise CheckpointError(
            f"{path}: its classes have other names, or another order, than those of the distilled "
            "file; give a network for the same classes"
        )
    if side != size:
        raise CheckpointError(
            f"{path}: is for images of {side} px, and those of the distilled file have {size} px; "
            "give a network for the same size"
        )


def _fault(model: nn.Module, state: Mapping[str, Tensor], classes: int) -> str:
    """Why these weights are not those of `model`, in words; empty if they are."""
    own = model.state_dict()
    head = state.get(f"{model.head}.weight")
    if head is not None and head.dim() == 2 and len(head) != classes:
        return f"its classifier tells {len(head)} classes apart, and the distilled file {classes}"
    for name, tensor in own.items():
        if name not in state:
            if name.endswith(COUNTER):
                continue
            return f"has no weight '{name}'"
        if state[name].shape != tensor.shape:
            return (
                f"weight '{name}' has shape {list(state[name].shape)} and not {list(tensor.shape)}"
            )
        if not state[name].isfinite().all():
            return f"weight '{name}' has values that are not finite"
    extra = sorted(set(state) - set(own))
    return f"weight '{extra[0]}' has no place in the network" if extra else ""
