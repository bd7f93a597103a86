"""The recover steps of a run: the picture of the losses, drawn last and by one rank."""

import shutil
from pathlib import Path

import torch

from scdd.config.load import load_config
from scdd.distributed import World, rank_and_size
from scdd.pipeline import distill
from scdd.recovery.plots import draw_trajectories
from scdd.recovery.trajectories import read_trajectories
from scdd.run import RunDirectory
from scdd.steps import Context, run_recover
from tests import tiny_run
from tests.conftest import FinishedRun
from tests.two_processes import TwoProcesses

CPU = torch.device("cpu")


def drawn_from_all_lines(run: Path, step: str, scratch: Path) -> bytes:
    """The picture of all that the tiny run should have logged of a step."""
    (found,) = read_trajectories(run / "metrics.jsonl", step)
    assert found.iterations.tolist() == [1, 2, 4] and found.class_loss.shape == (2, 3)
    assert found.distances.shape == (9, 2, 3)  # 3 blocks of 2, the stem, 2 projections
    draw_trajectories(scratch / "expected.png", [("teacher", found)])
    return (scratch / "expected.png").read_bytes()


def test_both_steps_draw_their_own_losses_and_the_report_shows_them(
    finished_run: FinishedRun, tmp_path: Path
):
    run = finished_run.path
    pictures = {}
    for step in ("recover", "recover_real"):
        pictures[step] = (run / step / "losses.png").read_bytes()
        assert pictures[step] == drawn_from_all_lines(run, step, tmp_path)
        for folder in (run, run / "report"):  # report.md is in both
            assert (folder / f"{step}_losses.png").read_bytes() == pictures[step]
        shown = f"![losses and distances over the iterations]({step}_losses.png)"
        assert shown in (run / "report.md").read_text().splitlines()
    assert pictures["recover"] != pictures["recover_real"]
    assert "recover_losses.png, recover_real_losses.png." in finished_run.stdout


def test_a_step_whose_metrics_are_gone_is_done_without_a_picture(copied_run: Path):
    for name in ("metrics.jsonl", "recover/losses.png", "recover/done.json"):
        (copied_run / name).unlink()
    distill(load_config("digits", tiny_run.overrides()), copied_run, redo="report")
    assert (copied_run / "recover" / "done.json").exists()
    assert not list(copied_run.glob("recover/*.png"))
    assert not (copied_run / "recover_losses.png").exists()
    text = (copied_run / "report.md").read_text()
    assert "](recover_real_losses.png)" in text and "(recover_losses.png)" not in text


def recover_on_two_ranks(run: Path) -> None:
    cfg = load_config(str(run / "config.yaml"))
    world = World(*rank_and_size())
    run_recover(Context(cfg, RunDirectory(run), CPU, ("recover",), world), "recover")


def test_the_picture_holds_the_batches_of_all_ranks(
    two_processes: TwoProcesses, copied_run: Path, finished_run: FinishedRun, tmp_path: Path
):
    shutil.rmtree(copied_run / "recover")
    (copied_run / "metrics.jsonl").unlink()
    two_processes(recover_on_two_ranks, copied_run)
    made = (copied_run / "recover" / "losses.png").read_bytes()
    assert made == drawn_from_all_lines(copied_run, "recover", tmp_path)
    assert made == (finished_run.path / "recover" / "losses.png").read_bytes()
