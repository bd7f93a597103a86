"""What is read back from metrics.jsonl: torn, repeated and missing lines included."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scdd.recovery.trajectories import Trajectories, read_trajectories
from scdd.run import RunDirectory

NAN = np.nan


def losses(batch: int, iteration: int, one: float, other: float) -> dict[str, Any]:
    return {"batch": batch, "iteration": iteration, "class_loss": one, "matching_loss": other}


def layers(batches: list[int], iteration: int, *pairs: list[float]) -> dict[str, Any]:
    return {"batches": batches, "iteration": iteration, "layers": pairs}


def read(folder: Path, *lines: dict[str, Any]) -> Trajectories | None:
    """What is read of the only teacher, if there is anything."""
    for line in lines:
        RunDirectory(folder).log("recover", **line)
    found = read_trajectories(folder / "metrics.jsonl", "recover")
    assert len(found) < 2
    return found[0] if found else None


def same(array: np.ndarray, expected: list[Any]) -> bool:
    return array.shape == np.shape(expected) and np.allclose(array, expected, equal_nan=True)


def test_groups_count_by_their_batches(tmp_path: Path):
    found = read(
        tmp_path,
        # The second group first, as ranks do not wait for each other.
        losses(2, 50, 3, 30),
        layers([2], 50, [4, 40], [1, 8]),
        losses(0, 50, 1, 10),
        losses(1, 50, 2, 20),
        layers([0, 1], 50, [1, 10], [7, 5]),
        losses(0, 80, 0.5, 5),
        losses(1, 80, 0.6, 6),
        layers([0, 1], 80, [0.5, 2], [0.25, 1]),
        losses(2, 80, 0.7, 7),
        layers([2], 80, [2, 5], [0.25, 4]),
    )
    assert found is not None and found.iterations.tolist() == [50, 80]
    assert same(found.class_loss, [[1, 0.5], [2, 0.6], [3, 0.7]])
    assert same(found.matching_loss, [[10, 5], [20, 6], [30, 7]])
    # (2 * 1 + 4) / 3 and so on, in the order layer, statistic, iteration.
    assert same(found.distances, [[[2, 1], [20, 3]], [[5, 0.25], [6, 2]]])


def test_the_last_line_counts_where_a_kill_made_iterations_happen_twice(tmp_path: Path):
    found = read(
        tmp_path,
        losses(0, 50, 1, 10),
        layers([0], 50, [1, 2]),
        losses(0, 100, 9, 90),
        layers([0], 100, [9, 9]),
        losses(0, 100, 2, 20),
        layers([0], 100, [3, 4]),
    )
    assert found is not None and found.iterations.tolist() == [50, 100]
    assert same(found.class_loss, [[1, 2]]) and same(found.matching_loss, [[10, 20]])
    assert same(found.distances, [[[1, 3], [2, 4]]])


def test_what_is_missing_is_nan(tmp_path: Path):
    found = read(
        tmp_path,
        losses(0, 50, 1, 10),
        losses(3, 100, 2, 20),
        layers([3], 100, [3, 4]),
        layers([0], 150, [5, 6]),
    )
    assert found is not None and found.iterations.tolist() == [50, 100]
    assert same(found.class_loss, [[1, NAN], [NAN, 2]])
    assert same(found.distances, [[[NAN, 3], [NAN, 4]]])


def test_a_redone_step_forgets_what_was_logged_before(tmp_path: Path):
    found = read(
        tmp_path,
        {"group": 1, "compiled": False},
        losses(0, 50, 1, 10),
        losses(7, 4000, 1, 10),
        layers([7], 4000, [3, 4], [5, 6]),
        {"group": 2, "compiled": False},
        losses(0, 50, 5, 6),
        layers([0], 50, [7, 8]),
    )
    assert found is not None and found.iterations.tolist() == [50]
    assert same(found.class_loss, [[5]]) and same(found.distances, [[[7], [8]]])


def test_every_teacher_has_its_own(tmp_path: Path):
    run = RunDirectory(tmp_path)
    for line in (
        losses(0, 1, 5, 50) | {"teacher": 0},
        layers([0], 1, [1, 2]) | {"teacher": 0},
        losses(0, 2, 1, 10) | {"teacher": 1},
        layers([0], 2, [3, 4], [5, 6]) | {"teacher": 1},
        losses(0, 3, 4, 40) | {"teacher": 0},
        layers([0], 3, [7, 8]) | {"teacher": 0},
    ):
        run.log("recover", **line)
    first, second = read_trajectories(tmp_path / "metrics.jsonl", "recover")
    assert first.iterations.tolist() == [1, 3] and second.iterations.tolist() == [2]
    assert same(first.class_loss, [[5, 4]]) and same(second.matching_loss, [[10]])
    assert same(first.distances, [[[1, 7], [2, 8]]])
    assert same(second.distances, [[[3], [4]], [[5], [6]]])
    assert first.medians(-1) == (4, 40)


def test_torn_lines_and_those_of_other_stages_are_passed_over(tmp_path: Path):
    run, path = RunDirectory(tmp_path), tmp_path / "metrics.jsonl"
    run.log("recover", **losses(0, 50, 1, 10))
    run.log("recover_real", **losses(0, 50, 8, 80))
    run.log("squeeze", epoch=1)
    with path.open("ab") as file:
        file.write(json.dumps({"stage": "recover"} | losses(0, 100, 9, 90)).encode()[:-9])
    run.log("recover", **losses(0, 100, 2, 20))  # lost with the torn line that it follows
    with path.open("ab") as file:
        file.write(b'\xff\xfe\n7\n\n{"stage": "recover", "note": "new"}\n')
    found = read(tmp_path, losses(0, 150, 3, 30))
    assert found is not None and found.iterations.tolist() == [50, 150]
    assert same(found.class_loss, [[1, 3]]) and found.distances.shape == (0, 2, 2)


@pytest.mark.parametrize("lines", [[], [{"group": 1}], [layers([0], 50, [1, 2])]])
def test_without_a_loss_there_is_nothing(lines: list[dict[str, Any]], tmp_path: Path):
    assert read(tmp_path, *lines) is None
