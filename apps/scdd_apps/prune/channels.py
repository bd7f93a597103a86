"""Which channels go: one order over all layers, with a floor per layer, in blocks that may go."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scdd.errors import ConfigError, RunError

FEWEST = 8
"""Channels that every layer keeps, if it has them."""
FEWEST_SHARE = 0.1
"""Share of its channels that every layer keeps."""
MOST_OFF = 0.02
"""How far the achieved ratio may be from the one asked for."""


@dataclass(frozen=True, eq=False)
class Coupled:
    """Channels that have to be removed together, such as those that a residual sum ties."""

    root: str
    """Path of the layer that the removal starts from."""
    layers: tuple[nn.Conv2d | nn.Linear, ...]
    """The layers whose outputs these channels are."""
    norms: tuple[nn.BatchNorm2d, ...] = ()
    """The BatchNorm layers over these channels."""
    ties: int = 1
    """Groups of a grouped convolution over these channels: it stays one only if the same position
    goes in each group."""

    @property
    def width(self) -> int:
        """Number of channels."""
        return self.layers[0].weight.shape[0]

    @property
    def positions(self) -> int:
        """Number of parts that can go on their own, of `ties` channels each."""
        return self.width // self.ties

    @property
    def floor(self) -> int:
        """Channels to keep at least."""
        return min(self.width, max(FEWEST, math.ceil(FEWEST_SHARE * self.width)))

    def channels(self, positions: Sequence[int]) -> list[int]:
        """All channels at these positions, in order."""
        return sorted(p + g * self.positions for p in positions for g in range(self.ties))


Importance = Callable[[Coupled], Tensor]
"""Gives every position of a layer a score; low ones go first."""


@dataclass(frozen=True, order=True)
class _Block:
    """Positions of one layer that go together, so that its width stays a multiple."""

    score: float
    rank: float
    """In its own layer, in [0, 1)."""
    layer: int
    positions: tuple[int, ...]


def floors_of(layers: Sequence[Coupled]) -> dict[str, int]:
    """Channels that every layer has to keep, by root."""
    return {layer.root: layer.floor for layer in layers}


def select(
    layers: Sequence[Coupled],
    count: int,
    importance: Importance,
    floors: Mapping[str, int],
    multiple: int = 1,
) -> dict[str, list[int]]:
    """Choose `count` channels to remove, by root; sorted, and no layer falls below its floor.

    Channels go in the order of their importance over all layers. Between equals the one goes that
    ranks lower in its own layer, so that a net whose scores are all equal is thinned evenly.

    Args:
        layers: where to choose.
        count: how many; as near as blocks come to it.
        importance: score per position.
        floors: channels to keep at least, by root.
        multiple: what the width of a layer that loses channels becomes a multiple of.
    """
    blocks = [
        block
        for number, layer in enumerate(layers)
        for block in _blocks(number, layer, importance(layer).double().cpu(), multiple)
    ]
    removed: list[list[int]] = [[] for _ in layers]
    closed: set[int] = set()
    for block in sorted(blocks):
        layer, gone = layers[block.layer], removed[block.layer]
        size = len(block.positions) * layer.ties
        left = layer.width - len(gone) * layer.ties - size
        if block.layer in closed or 2 * count < size or left < floors[layer.root]:
            closed.add(block.layer)  # its later blocks count on this one
            continue
        gone.extend(block.positions)
        count -= size
    return {
        layer.root: layer.channels(gone)
        for layer, gone in zip(layers, removed, strict=True)
        if gone
    }


def at_random(
    layers: Sequence[Coupled], counts: Mapping[str, int], draw: torch.Generator
) -> dict[str, list[int]]:
    """Choose so many channels of each layer, whichever; `counts` is by root."""
    return {
        layer.root: layer.channels(
            torch.randperm(layer.positions, generator=draw)[: counts[layer.root] // layer.ties]
            .sort()
            .values.tolist()
        )
        for layer in layers
        if counts.get(layer.root)
    }


def _blocks(number: int, layer: Coupled, scores: Tensor, multiple: int) -> list[_Block]:
    order = scores.argsort(stable=True).tolist()
    each = multiple // math.gcd(multiple, layer.ties)
    starts = [0, *range(len(order) % each or each, len(order) + 1, each)]
    return [
        # The last one of a block decides, so that the blocks of a layer stay in its order.
        _Block(scores[order[end - 1]].item(), start / len(order), number, tuple(order[start:end]))
        for start, end in itertools.pairwise(starts)
    ]


def achieved(layers: Sequence[Coupled], removed: Mapping[str, Sequence[int]]) -> float:
    """Share of all channels that `removed` names."""
    return sum(map(len, removed.values())) / sum(layer.width for layer in layers)


def check_reachable(arch: str, layers: Sequence[Coupled], ratio: float, multiple: int = 1) -> None:
    """Refuse a ratio that the floors put out of reach, before anything is trained.

    Raises:
        ConfigError: with the largest ratio that can be reached.
    """
    total = sum(layer.width for layer in layers)
    everything = select(
        layers, total, lambda c: torch.zeros(c.positions), floors_of(layers), multiple
    )
    most = achieved(layers, everything)
    if ratio - most > MOST_OFF:
        rounded = f", in multiples of {multiple}" if multiple > 1 else ""
        raise ConfigError(
            f"{arch}: a ratio of {ratio:g} was asked for, but {most:.3f} is the most that can be "
            f"reached, since every layer keeps {FEWEST} channels and {FEWEST_SHARE:.0%} of its "
            f"own{rounded}; ask for less"
        )


def check_achieved(arch: str, asked: float, reached: float) -> None:
    """Refuse to go on with a network that was not pruned as asked.

    Raises:
        RunError: if the two ratios differ by more than two points.
    """
    if abs(asked - reached) > MOST_OFF:
        raise RunError(
            f"{arch}: a ratio of {asked:g} was asked for, but {reached:.3f} of the channels were "
            "removed; ask for another ratio, or for a smaller --round-to"
        )
