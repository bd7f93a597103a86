"""The network in a file that is a given architecture, whole and nothing more."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from scdd.config.stem import STOCK
from scdd.errors import CheckpointError
from scdd.foreign.heads import is_head
from scdd.foreign.layouts import (
    Candidate,
    Layout,
    Shapes,
    best,
    candidates,
    fits,
    recognise,
    strangers,
)
from scdd.foreign.read import State
from scdd.models import create_model, has_choice_of_stem, list_models


@dataclass(frozen=True)
class Match:
    """A network that was found, with every weight of the architecture asked for."""

    candidate: Candidate
    layout: Layout
    state: State
    """The dictionary that holds it."""
    wanted: Shapes
    """Weights of the architecture, without the counters of BatchNorm."""

    @property
    def described(self) -> str:
        """The layout in words, with the place in the file."""
        return _described(self.layout, self.candidate)


def find_network(path: Path, states: Mapping[str, State], arch: str, image_size: int) -> Match:
    """Find the network of a file, and see that it is `arch`.

    Raises:
        CheckpointError: if there is none or more than one, or if it lacks a weight, has one of
            another shape, or one more, as a deeper net would.
    """
    wanted, head = _shapes(arch, image_size)
    free_kernel = has_choice_of_stem(arch)
    found = best(candidates(states, wanted, free_kernel), len(wanted))
    if len(found) > 1:
        places = " and ".join(f"'{_place(candidate)}'" for candidate in found)
        raise CheckpointError(
            f"{path}: holds several complete networks, under {places}; save the one you mean alone"
        )
    # A few equal names, such as bn1.weight, are no network.
    if not found or 4 * found[0].found < len(wanted):
        raise CheckpointError(f"{path}: {_nothing_found(states, arch, image_size)}")
    candidate = found[0]
    state, layout = states[candidate.where], recognise(states, candidate)
    fault = _fault(candidate, state, wanted, head, free_kernel)
    if fault is not None:
        other = _other_arch(states, arch, image_size)
        remedy = (
            f"these are the shapes of {other}; set squeeze.arch: {other}"
            if other
            else "no ResNet here has these shapes; is the file complete, and of this architecture?"
        )
        raise CheckpointError(
            f"{path}: found {_described(layout, candidate)}, but {fault} for {arch}; {remedy}"
        )
    return Match(candidate, layout, state, wanted)


def is_counter(key: str) -> bool:
    """Whether it counts batches, which nothing needs where BatchNorm has a momentum."""
    return key.endswith("num_batches_tracked")


def _shapes(arch: str, image_size: int) -> tuple[Shapes, str]:
    """Weights of the backbone, without counters, and the path of the classifier."""
    if has_choice_of_stem(arch):
        with torch.device("meta"):
            model = create_model(arch, 0, image_size, STOCK)
    else:
        model = create_model(arch, 0, image_size)
    state = model.state_dict()
    return {key: t.shape for key, t in state.items() if not is_counter(key)}, str(model.head)


def _fault(
    candidate: Candidate, state: State, wanted: Shapes, head: str, free_kernel: bool
) -> str | None:
    """What keeps the network from being the one wanted: the first fault, and how many more."""
    faults = []
    for key, shape in wanted.items():
        name = candidate.key(key)
        if name not in state:
            faults.append(f"the backbone weight '{name}' is missing")
        elif not fits(key, state[name], shape, free_kernel):
            faults.append(f"weight '{name}' has shape {list(state[name].shape)}, not {list(shape)}")
    extra = strangers(candidate, state, wanted, head)
    faults += [f"weight '{name}' is one too many" for name in extra]
    more = f" and {len(faults) - 1} more do not fit" if len(faults) > 1 else ""
    return faults[0] + more if faults else None


def _other_arch(states: Mapping[str, State], arch: str, image_size: int) -> str | None:
    """The ResNet that the file holds whole and nothing more of."""
    for name in list_models():
        if name != arch and name.startswith("resnet"):
            wanted, head = _shapes(name, image_size)
            for candidate in candidates(states, wanted, has_choice_of_stem(name)):
                state = states[candidate.where]
                whole = candidate.matched == len(wanted)
                if whole and not strangers(candidate, state, wanted, head):
                    return name
    return None


def _nothing_found(states: Mapping[str, State], arch: str, image_size: int) -> str:
    """The sentence for a file without any network that looks like `arch`."""
    other = _other_arch(states, arch, image_size)
    if other:
        return f"holds no {arch}; its shapes are those of {other}; set squeeze.arch: {other}"
    names = [name for state in states.values() for name in state]
    if any(is_head(name) for name in names) and len(names) <= 4:
        return (
            "holds a linear classifier alone; give it as squeeze.checkpoint.head, and the backbone "
            "as squeeze.checkpoint.path"
        )
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return (
        f"holds no network with the names of {arch} (its keys: {shown}); give weights of a layout "
        "that scdd knows, or rename the keys to those of torchvision"
    )


def _described(layout: Layout, candidate: Candidate) -> str:
    note = f", {candidate.naming.note}" if candidate.naming.note else ""
    place = _place(candidate)
    return f"{layout.name}{note}" + (f", under '{place}'" if place else "")


def _place(candidate: Candidate) -> str:
    return f"{candidate.where}.{candidate.prefix}" if candidate.where else candidate.prefix
