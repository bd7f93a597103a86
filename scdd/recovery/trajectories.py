"""What recovery has logged, as arrays: the losses of every batch, the distances of every layer."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Trajectories(NamedTuple):
    """What is missing is NaN."""

    iterations: NDArray[np.int64]
    """[T], ascending: those at which something was logged."""
    class_loss: NDArray[np.float64]
    """[N, T] of N batches, in their order."""
    matching_loss: NDArray[np.float64]
    """[N, T], without alpha."""
    distances: NDArray[np.float64]
    """[K, 2, T] of K BatchNorm layers, mean and variance, averaged over the batches."""

    def medians(self, at: int) -> tuple[float, float]:
        """Class and matching loss of the batches in the middle, at a position of `iterations`."""
        losses = (self.class_loss[:, at], self.matching_loss[:, at])
        return float(np.nanmedian(losses[0])), float(np.nanmedian(losses[1]))


def read_trajectories(path: Path, stage: str) -> list[Trajectories]:
    """Read a stage's trajectories from metrics.jsonl, those of each teacher; none without a loss.

    A kill may have torn a line or made the same iterations happen twice, then the last counts; a
    line with `group` says that the stage has begun from nothing.
    """
    losses: dict[int, dict[tuple[int, int], tuple[float, float]]] = defaultdict(dict)
    layers: dict[int, dict[tuple[int, int], tuple[int, list[list[float]]]]] = defaultdict(dict)
    for line in _lines(path, stage):
        teacher = line.get("teacher", 0)
        if "group" in line:
            losses.clear()
            layers.clear()
        elif "batch" in line:
            values = (line["class_loss"], line["matching_loss"])
            losses[teacher][line["batch"], line["iteration"]] = values
        elif "batches" in line:
            group = line["batches"]
            layers[teacher][group[0], line["iteration"]] = (len(group), line["layers"])
    return [_trajectories(losses[teacher], layers[teacher]) for teacher in sorted(losses)]


def _trajectories(
    losses: dict[tuple[int, int], tuple[float, float]],
    layers: dict[tuple[int, int], tuple[int, list[list[float]]]],
) -> Trajectories:
    """What was logged of one teacher, by batch and iteration, as arrays."""
    rows = {batch: row for row, batch in enumerate(sorted({batch for batch, _ in losses}))}
    iterations = sorted({iteration for _, iteration in losses})
    columns = {iteration: column for column, iteration in enumerate(iterations)}
    by_batch = np.full((2, len(rows), len(columns)), np.nan)
    for (batch, iteration), values in losses.items():
        by_batch[:, rows[batch], columns[iteration]] = values
    depth = max((len(pairs) for _, pairs in layers.values()), default=0)
    total, count = np.zeros((depth, 2, len(columns))), np.zeros((depth, 1, len(columns)))
    for (_, iteration), (batches, pairs) in layers.items():
        if iteration in columns:
            total[:, :, columns[iteration]] += batches * np.array(pairs)
            count[:, :, columns[iteration]] += batches
    distances = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return Trajectories(np.array(iterations), by_batch[0], by_batch[1], distances)


def _lines(path: Path, stage: str) -> Iterator[dict[str, Any]]:
    try:
        file = path.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    with file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and line.get("stage") == stage:
                yield line
