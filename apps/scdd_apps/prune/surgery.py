"""Removing channels from a network: torch-pruning finds what hangs on a channel and cuts it."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning
from torch import nn

from scdd.training import evaluating
from scdd_apps.prune.channels import Coupled

History = list[list[Any]]
"""Per cut: path of the convolution, whether outputs are cut, indices. JSON can hold it."""


def coupled_channels(model: nn.Module, image_size: int) -> list[Coupled]:
    """Find the channels of `model` that can be removed, layer by layer in the model's order.

    Left out are channels without BatchNorm, which have no scale to be ranked by.
    """
    graph = dependency_graph(model, image_size)
    paths = {module: path for path, module in model.named_modules()}
    order = list(paths)
    found = []
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d]):
        root = group[0].dep.target.module
        width = root.out_channels
        norms = {
            item.dep.target.module: None
            for item in group
            if isinstance(item.dep.target.module, nn.BatchNorm2d)
            and list(item.idxs) == list(range(width))
        }
        outputs = [
            item
            for item in group
            if isinstance(item.dep.target.module, nn.Conv2d)
            and graph.is_out_channel_pruning_fn(item.dep.handler)
        ]
        if norms and len(norms) == len(outputs):
            found.append((order.index(root), Coupled(paths[root], tuple(norms))))
    return [coupled for _, coupled in sorted(found, key=lambda item: item[0])]


def remove_channels(
    model: nn.Module, image_size: int, removed: Mapping[str, Sequence[int]]
) -> History:
    """Cut output channels of convolutions, by path, and all that hangs on them; in place.

    Every parameter that changes shape is a new one, so optimisers have to be made afterwards.

    Returns:
        what `replay` needs to do the same to another network of this architecture.

    Raises:
        ValueError: if a layer would lose all its channels.
    """
    graph = dependency_graph(model, image_size)
    cut = torch_pruning.prune_conv_out_channels
    for path, channels in removed.items():
        group = graph.get_pruning_group(model.get_submodule(path), cut, list(channels))
        if not graph.check_pruning_group(group):
            raise ValueError(f"{path}: {len(channels)} channels are all it has")
        group.prune()
    check_trains(model, image_size)
    return [[path, outputs, list(indices)] for path, outputs, indices in graph.pruning_history()]


def replay(model: nn.Module, image_size: int, history: History) -> None:
    """Do to a fresh network what `remove_channels` did to another; the history may be a stranger's.

    Raises:
        ValueError: if it names anything but some of the output channels of a convolution.
    """
    widths = {
        path: module.out_channels
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
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
    with evaluating(model), torch.enable_grad(), _all_trainable(model):
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
