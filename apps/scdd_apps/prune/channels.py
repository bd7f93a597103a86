"""Which channels go: one global order of |BatchNorm scale|, with a floor per layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from scdd.errors import RunError

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
    """Path of the convolution that the removal starts from."""
    norms: tuple[nn.BatchNorm2d, ...]
    """The BatchNorm layers over these channels."""

    @property
    def width(self) -> int:
        """Number of channels."""
        return self.norms[0].num_features

    @property
    def floor(self) -> int:
        """Channels to keep at least."""
        return min(self.width, max(FEWEST, math.ceil(FEWEST_SHARE * self.width)))

    def importance(self) -> Tensor:
        """|scale| per channel [width], the mean over the coupled layers."""
        scales = [norm.weight.detach().abs().double().cpu() for norm in self.norms]
        return sum(scales[1:], start=scales[0]) / len(scales)


def select(layers: Sequence[Coupled], ratio: float) -> dict[str, list[int]]:
    """Choose round(ratio * all channels) channels to remove, by root; sorted, none below a floor.

    Channels go in the order of their importance over all layers. Between equals the one goes that
    ranks lower in its own layer, so that a net whose scales are all equal is thinned evenly.
    """
    candidates = []
    for number, layer in enumerate(layers):
        scores = layer.importance()
        order = scores.argsort(stable=True).tolist()
        for rank, channel in enumerate(order):
            candidates.append((scores[channel].item(), rank / layer.width, number, channel))
    wanted = round(ratio * len(candidates))
    removed: list[list[int]] = [[] for _ in layers]
    spare = [layer.width - layer.floor for layer in layers]
    for _, _, number, channel in sorted(candidates):
        if wanted and len(removed[number]) < spare[number]:
            removed[number].append(channel)
            wanted -= 1
    return {layer.root: sorted(gone) for layer, gone in zip(layers, removed, strict=True) if gone}


def achieved(layers: Sequence[Coupled], removed: dict[str, list[int]]) -> float:
    """Share of all channels that `removed` names."""
    return sum(map(len, removed.values())) / sum(layer.width for layer in layers)


def check_reachable(arch: str, layers: Sequence[Coupled], ratio: float) -> None:
    """Refuse a ratio that the floors put out of reach, before anything is trained.

    Raises:
        RunError: with the largest ratio that can be reached.
    """
    total = sum(layer.width for layer in layers)
    most = sum(layer.width - layer.floor for layer in layers) / total
    if ratio - most > MOST_OFF:
        raise RunError(
            f"{arch}: a ratio of {ratio:g} was asked for, but {most:.3f} is the most that can be "
            f"reached, since every layer keeps {FEWEST} channels and {FEWEST_SHARE:.0%} of its "
            "own; ask for less"
        )


def check_achieved(arch: str, asked: float, reached: float) -> None:
    """Refuse to go on with a network that was not pruned as asked.

    Raises:
        RunError: if the two ratios differ by more than two points.
    """
    if abs(asked - reached) > MOST_OFF:
        raise RunError(
            f"{arch}: a ratio of {asked:g} was asked for, but {reached:.3f} of the channels were "
            "removed; ask for another ratio"
        )
