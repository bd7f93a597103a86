"""Removing channels from a network: torch-pruning finds what hangs on a channel and cuts it."""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning
from torch import nn
from torch_pruning.ops import OPTYPE

from scdd.training import evaluating
from scdd_apps.prune.channels import Coupled

History = list[list[Any]]
"""Per cut: path of the layer, whether outputs are cut, indices. JSON can hold it."""


def coupled_channels(model: nn.Module, image_size: int) -> list[Coupled]:
    """Find the channels of `model` that can be removed, layer by layer in the model's order.

    In a net with BatchNorm they are the outputs of convolutions that BatchNorm follows, in one
    without those of all convolutions, and in a transformer the hidden units of its MLPs.
    """
    graph = dependency_graph(model, image_size)
    paths = {module: path for path, module in model.named_modules()}
    order = list(paths)
    transformer = _has(model, nn.LayerNorm)
    normalised = _has(model, nn.BatchNorm2d)
    found = []
    for group in graph.get_all_groups(root_module_types=[nn.Linear if transformer else nn.Conv2d]):
        root = group[0].dep.target.module
        coupled = _coupled(graph, group, paths[root])
        wanted = _is_hidden(group) if transformer else not normalised or bool(coupled.norms)
        if wanted:
            found.append((order.index(root), coupled))
    return [coupled for _, coupled in sorted(found, key=lambda item: item[0])]


def _has(model: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(module, kind) for module in model.modules())


def _coupled(graph: torch_pruning.DependencyGraph, group: Any, path: str) -> Coupled:
    root = group[0].dep.target.module
    every = list(range(root.weight.shape[0]))
    layers: dict[Any, None] = {root: None}
    norms: dict[Any, None] = {}
    ties = 1
    for item in group:
        module = item.dep.target.module
        if isinstance(module, nn.Conv2d) and 1 < module.groups < module.out_channels:
            ties = math.lcm(ties, module.groups)
        if list(item.idxs) != every:
            continue
        if isinstance(module, nn.BatchNorm2d):
            norms[module] = None
        elif isinstance(module, nn.Conv2d) and graph.is_out_channel_pruning_fn(item.dep.handler):
            layers[module] = None
    return Coupled(path, tuple(layers), tuple(norms), ties)


def _is_hidden(group: Any) -> bool:
    """Whether a linear layer feeds another one through nothing but functions of single values."""
    _, *rest = [item.dep.target for item in group]
    linear = [target for target in rest if isinstance(target.module, nn.Linear)]
    kinds = {target.type for target in rest} - {OPTYPE.LINEAR}
    return len(linear) == 1 and kinds <= {OPTYPE.ELEMENTWISE, OPTYPE.RESHAPE}


def remove_channels(
    model: nn.Module, image_size: int, removed: Mapping[str, Sequence[int]]
) -> History:
    """Cut output channels of layers, by path, and all that hangs on them; in place.

    Every parameter that changes shape is a new one, so optimisers have to be made afterwards.

    Returns:
        what `replay` needs to do the same to another network of this architecture.

    Raises:
        ValueError: if a layer would lose all its channels.
    """
    graph = dependency_graph(model, image_size)
    for path, channels in removed.items():
        layer = model.get_submodule(path)
        cut = graph.get_pruner_of_module(layer).prune_out_channels
        group = graph.get_pruning_group(layer, cut, list(channels))
        if not graph.check_pruning_group(group):
            raise ValueError(f"{path}: {len(channels)} channels are all it has")
        group.prune()
    check_trains(model, image_size)
    return [[path, outputs, list(indices)] for path, outputs, indices in graph.pruning_history()]


def replay(model: nn.Module, image_size: int, history: History) -> None:
    """Do to a fresh network what `remove_channels` did to another; the history may be a stranger's.

    Raises:
        ValueError: if it names anything but some of the outputs of a layer.
    """
    widths = {
        path: module.weight.shape[0]
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    for path, outputs, channels in history:
        known = set(range(widths.get(path, 0)))
        if outputs is not True or not set(channels) < known or len(set(channels)) < len(channels):
            raise ValueError(f"'{path}' has no such channels")
        widths[path] -= len(channels)
    if history:
        dependency_graph(model, image_size).load_pruning_history(history)


def dependency_graph(model: nn.Module, image_size: int) -> torch_pruning.DependencyGraph:
    """Trace `model`; its mode, its gradients and its statistics stay as they are."""
    device = next(model.parameters()).device
    example = torch.zeros(2, 3, image_size, image_size, device=device)
    with (
        evaluating(model),
        torch.enable_grad(),
        _all_trainable(model),
        warnings.catch_warnings(),
    ):
        # Of a transformer's class token and positions, which nothing that is cut here reaches.
        warnings.filterwarnings("ignore", message="Unwrapped parameters detected")
        return torch_pruning.DependencyGraph().build_dependency(model, example)


def check_trains(model: nn.Module, image_size: int) -> None:
    """Make sure that a network still runs forward and backward, and reaches every parameter."""
    probe = copy.deepcopy(model).eval().requires_grad_(True)
    device = next(probe.parameters()).device
    with torch.enable_grad():
        probe(torch.zeros(2, 3, image_size, image_size, device=device)).sum().backward()
    for name, parameter in probe.named_parameters():
        assert parameter.grad is not None and parameter.grad.shape == parameter.shape, name


@contextmanager
def _all_trainable(model: nn.Module) -> Iterator[None]:
    # torch-pruning follows gradients, so a frozen layer would silently not be seen.
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, trainable in before:
            parameter.requires_grad_(trainable)
