"""Linear classifiers in weights files; an MLP, or a projection beside a backbone, is none."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from scdd.errors import CheckpointError
from scdd.foreign.read import State, read

Head = tuple[Tensor, Tensor]
"""Weight [classes, features] and bias [classes] of a linear classifier."""

BESIDE_A_FLAT_NET = ("fc", "linear", "head", "classifier")
BESIDE_A_BACKBONE = ("classifier", "online_classifier.classification_head", "classification_head")
"""Names of a classifier beside a net with a prefix, where `fc` or `head` may be a projection."""
HEAD_WORDS = (*BESIDE_A_FLAT_NET, "classification_head")
"""Last words of its name in a file that was given for its classifier."""


def head_among(state: State, names: Iterable[str], model: nn.Module) -> tuple[str, Head | None]:
    for name in names:
        head = _linear(state, name)
        if head is not None and head[0].shape[1] == model.feature_dim:
            return name, head
    return "", None


def head_of_file(path: Path, model: nn.Module, classes: int | None) -> tuple[str, Head]:
    """The only classifier of a file, for the features of `model`."""
    found = {}
    for state in read(path).states.values():
        for key in state:
            name = key.removesuffix(".weight")
            head = _linear(state, name) if is_head(key) or name == model.head else None
            if head is not None:
                found[name] = head
    suited = {n: head for n, head in found.items() if head[0].shape[1] == model.feature_dim}
    if len(suited) == 1:
        ((name, head),) = suited.items()
        if classes is not None and len(head[0]) != classes:
            raise CheckpointError(
                f"{path}: its classifier '{name}' tells {len(head[0])} classes apart, but the "
                f"dataset has {classes}; leave squeeze.checkpoint.head out, and a new one is fitted"
            )
        return name, head
    if suited:
        raise CheckpointError(
            f"{path}: holds several classifiers ({', '.join(suited)}); save the one you mean alone"
        )
    shapes = "; ".join(f"'{n}' takes {head[0].shape[1]}" for n, head in found.items())
    raise CheckpointError(
        f"{path}: holds no linear classifier for the {model.feature_dim} features of {model.arch}"
        + (f" ({shapes})" if shapes else "")
        + "; give one with a weight [classes, features] and a bias, such as linear.weight"
    )


def is_head(key: str) -> bool:
    *_, word, kind = ("", *key.split("."))
    return kind == "weight" and word in HEAD_WORDS


def _linear(state: State, name: str) -> Head | None:
    """Weight and bias of a linear layer; an MLP has numbers in between and is none."""
    weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
    if weight is None or bias is None or weight.dim() != 2 or bias.shape != weight.shape[:1]:
        return None
    return weight.float(), bias.float()


def accepted(name: str, head: Head | None, classes: int | None) -> tuple[Head | None, str]:
    """The classifier if it is for these classes, and a word about it."""
    if head is None:
        return None, "none"
    shape = list(head[0].shape)
    if classes is not None and len(head[0]) != classes:
        return None, f"{name} {shape} is not used, as the dataset has {classes} classes"
    return head, f"{name} {shape}"
