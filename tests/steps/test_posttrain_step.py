"""The step posttrain: the best epoch beside the last one, kills, and students shared by ranks."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import scdd.steps.posttrain as step_module
from scdd.config.load import load_config
from scdd.config.run import RunConfig
from scdd.distributed import World
from scdd.errors import ConfigError
from scdd.run import RunDirectory
from scdd.steps import Context, check_later_steps, run_posttrain
from scdd.steps.context import ARMS
from tests import tiny_run
from tests.conftest import FinishedRun
from tests.two_processes import TwoProcesses

CPU = torch.device("cpu")
EVERY = {"posttrain__evaluate_every": 5, "posttrain__labels": "[soft]"}


class Killed(BaseException):
    """Stands for a kill."""


def config(**more: object) -> RunConfig:
    return load_config("digits", tiny_run.overrides(**more))


def without_students(run: FinishedRun, target: Path) -> Path:
    tiny_run.copy_of(run.path, target)
    shutil.rmtree(target / "posttrain")
    (target / "metrics.jsonl").unlink()
    return target


def posttrain(run: Path, world: World | None = None, **more: object) -> list[dict[str, Any]]:
    """Run the step, with a single arm; return its rows on the rank that writes them."""
    context = Context(config(**more), RunDirectory(run), CPU, (), world or World())
    context.arms = lambda: [ARMS[0]]  # type: ignore[method-assign]
    run_posttrain(context, "posttrain")
    if not context.world.leads:
        return []
    return json.loads((run / "posttrain" / "results.json").read_text())["rows"]


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_best_epoch_stands_beside_the_last_one_which_is_the_score(
    finished_run: FinishedRun, tmp_path: Path
):
    run = without_students(finished_run, tmp_path / "run")
    (row,) = posttrain(run, **EVERY)
    *evaluated, last = lines(run)
    assert [line["epoch"] for line in evaluated] == [5, 10]
    (score,) = (
        r["top1"]
        for r in tiny_run.scores(finished_run.path)
        if (r["arm"], r["labels"]) == ("distilled", "soft")
    )
    assert row["top1"] == score == last["top1"], "to look does not change the training"
    found = {line["epoch"]: line["top1"] for line in evaluated} | {12: score}
    best = max(found.values())
    assert row["best_top1"] == best == last["best_top1"]
    assert row["best_epoch"] == min(epoch for epoch, top1 in found.items() if top1 == best)
    assert sorted(p.name for p in (run / "posttrain").rglob("*")) == [
        "relabel-soft-0.json",
        "results.json",
        "rows",
    ]


def test_without_evaluations_there_is_no_best_epoch(finished_run: FinishedRun):
    assert not any(
        key.startswith("best") for row in tiny_run.scores(finished_run.path) for key in row
    )


def test_the_best_epoch_outlives_a_kill(
    finished_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The best score comes before the kill, by a measurement that is set here."""
    tops = {3: 40.0, 6: 90.0, 9: 50.0, 12: 60.0}
    run, settings = without_students(finished_run, tmp_path / "run"), dict(EVERY)
    settings |= {"posttrain__evaluate_every": 3, "checkpoint_minutes": 0}
    epochs: list[int] = []
    plain = step_module._best_of

    def of_our_own(path: Path, epoch: int, top1: float) -> dict[str, Any]:
        epochs.append(epoch)
        found = plain(path, epoch, tops[epoch])
        if epoch == 9 and epochs.count(9) == 1:
            raise Killed
        return found

    monkeypatch.setattr(step_module, "_best_of", of_our_own)
    with pytest.raises(Killed):
        posttrain(run, **settings)
    (row,) = posttrain(run, **settings)
    assert (row["best_top1"], row["best_epoch"]) == (90.0, 6)
    assert epochs == [3, 6, 9, 12, 12]


def test_a_micro_batch_that_holds_no_group_is_refused_before_the_run():
    cfg = config(posttrain__batch=10, posttrain__micro_batches=2)
    context = Context(cfg, RunDirectory(Path("unused")), CPU, ())
    with pytest.raises(ConfigError) as caught:
        check_later_steps(cfg, context.dataset)
    assert str(caught.value) == (
        "posttrain.batch = 10 in 2 micro-batches cannot hold a group of 10 images that relabel "
        "labels together; raise it, or lower relabel.group (now 10)"
    )


def on_a_rank(run: str, more: dict[str, object]) -> list[dict[str, Any]]:
    return posttrain(Path(run), World(torch.distributed.get_rank(), 2), **more)


@pytest.mark.slow  # Three processes import torch.
def test_ranks_share_the_batches_of_a_student_where_there_are_fewer_students_than_ranks(
    finished_run: FinishedRun, two_processes: TwoProcesses, tmp_path: Path
):
    alone = posttrain(without_students(finished_run, tmp_path / "alone"), **EVERY)
    run = without_students(finished_run, tmp_path / "shared")
    (run / "posttrain").mkdir()
    first, _ = two_processes(on_a_rank, str(run), EVERY)
    for mine, wanted in zip(first, alone, strict=True):
        assert mine["top1"] == pytest.approx(wanted["top1"], abs=1.0)  # Three of 359 images.
        assert mine["steps"] == wanted["steps"]
    assert [line.get("epoch") for line in lines(run)] == [5, 10, None], "one rank speaks"
    assert sorted(p.name for p in (run / "posttrain").rglob("*")) == [
        "relabel-soft-0.json",
        "results.json",
        "rows",
    ]
    assert two_processes(on_a_rank, str(run), EVERY)[0] == first, "finished rows stay"
