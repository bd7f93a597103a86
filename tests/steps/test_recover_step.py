"""Recover in a run: groups on one rank and on several, kills, orders, starts, a full disk."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from scdd.config.load import load_config
from scdd.datasets.pixel_statistics import with_statistics
from scdd.errors import RunError
from scdd.run import RunDirectory
from scdd.stages.select import choose_start, read_chosen
from scdd.steps import Context, run_recover
from tests import tiny_run
from tests.conftest import FinishedRun, Outcome
from tests.killed_rank import kill_a_rank

Run = Callable[..., Outcome]
CPU = torch.device("cpu")


def distill(out: Path, **settings: object) -> list[str]:
    return [
        *("distill", "digits", "--out", str(out), "--until", "recover"),
        *tiny_run.changes(**settings),
    ]


@pytest.fixture
def probed(finished_run: FinishedRun, tmp_path: Path) -> Path:
    """A run that has its teacher and nothing after it."""
    later = shutil.ignore_patterns("re*", "baseline", "posttrain", "*.h5", "gallery.png")
    return Path(shutil.copytree(finished_run.path, tmp_path / "run", ignore=later))


def recovered(run: Path) -> dict[str, np.ndarray]:
    return tiny_run.arrays(run / "recover" / "images.h5")


def assert_alike(found: np.ndarray, truth: np.ndarray) -> None:
    """Equal but for rounding, which Adam can enlarge where a gradient is tiny."""
    off = np.abs(found.astype(int) - truth.astype(int))
    assert (off <= 1).mean() > 0.99


def test_groups_of_any_size_make_the_images_of_batches_alone(
    warm_command: Run, probed: Path, tmp_path: Path
):
    found = {}
    for group in (1, 3):
        run = tiny_run.copy_of(probed, tmp_path / f"group {group}")
        outcome = warm_command(*distill(run, recover__batch=4, recover__group=group))
        assert outcome.returncode == 0, outcome.stderr
        assert f"batches in one pass: {group} of 5" in outcome.stdout
        assert json.loads((run / "recover" / "way.json").read_text())["group"] == group
        found[group] = recovered(run)
        assert found[group]["labels"].tolist() == [*range(10), *range(10)]
    assert_alike(found[3]["images"], found[1]["images"])


def test_shuffled_batches_end_in_the_order_of_the_rows(
    warm_command: Run, probed: Path, tmp_path: Path
):
    plain, shuffled = tmp_path / "plain", tmp_path / "shuffled"
    for run, order in ((plain, "consecutive"), (shuffled, "shuffled")):
        tiny_run.copy_of(probed, run)
        # So slow a start that images stay what they began as: noise of their own batch.
        settings = {"recover__batch": 1, "recover__order": order, "recover__lr": 1e-9}
        outcome = warm_command(*distill(run, **settings))
        assert outcome.returncode == 0, outcome.stderr
    one, other = recovered(plain), recovered(shuffled)
    assert one["labels"].tolist() == other["labels"].tolist()
    # The same twenty noises, one a batch, in the places of other rows of the same rank.
    places = [
        int(np.argmin([np.abs(image.astype(int) - noise).sum() for noise in one["images"]]))
        for image in other["images"]
    ]
    assert sorted(places) == list(range(20)) and places != list(range(20))
    assert sorted(places[:10]) == list(range(10))


def test_killed_before_every_change_it_makes_no_group_twice_and_the_same_images(
    warm_command: Run, probed: Path, tmp_path: Path
):
    settings = {"recover__batch": 4, "recover__group": 2, "checkpoint_minutes": 0}
    whole = tiny_run.copy_of(probed, tmp_path / "whole")
    assert warm_command(*distill(whole, **settings)).returncode == 0
    survived: list[str] = []
    made: dict[str, int] = {}
    while True:
        outcome = warm_command(*distill(probed, **settings), root=probed, survive=survived)
        if outcome.killed_at is None:
            break
        survived.append(outcome.killed_at)
        for path in (probed / "recover").glob("shards/*.safetensors"):
            changed = path.stat().st_mtime_ns
            assert made.setdefault(path.name, changed) == changed, f"{path.name} was made again"
    assert outcome.returncode == 0, outcome.stderr
    assert sorted(made) == [f"batch-0000{n}.safetensors" for n in (0, 2, 4)]
    assert recovered(probed)["images"].tobytes() == recovered(whole)["images"].tobytes()
    assert sorted(path.name for path in (probed / "recover").iterdir()) == [
        "done.json",
        "images.h5",
        "losses.png",
        "settings.json",
        "way.json",
    ]


@pytest.mark.slow  # Several processes import torch.
def test_a_rank_that_dies_leaves_its_groups_and_any_number_of_ranks_makes_the_rest(
    warm_command: Run, probed: Path, tmp_path: Path
):
    settings = {
        "recover__batch": 2,
        "recover__group": 2,
        "recover__iterations": 200,
        "checkpoint_minutes": 0,
    }
    whole = tiny_run.copy_of(probed, tmp_path / "whole")
    assert warm_command(*distill(whole, **settings)).returncode == 0
    shards = probed / "recover" / "shards"
    kill_a_rank(distill(probed, **settings), shards, "batch-*.safetensors", 2)
    kept = {path.name: path.stat().st_mtime_ns for path in shards.glob("batch-*.safetensors")}
    assert 2 <= len(kept) < 5
    outcome = warm_command(*distill(probed, **settings))
    assert outcome.returncode == 0, outcome.stderr
    assert recovered(probed)["images"].tobytes() == recovered(whole)["images"].tobytes()
    lines = (probed / "metrics.jsonl").read_text().splitlines()
    last = [
        entry["batches"]
        for entry in map(json.loads, lines)
        if entry["stage"] == "recover" and entry.get("iteration") == 200 and "batches" in entry
    ]
    assert sorted(map(tuple, last)) == [(n, n + 1) for n in range(0, 10, 2)], "none was made twice"


@pytest.mark.parametrize("start", ["real", "rded", "median"])
def test_real_starts_are_images_of_the_class_in_the_order_of_the_rows(
    start: str, probed: Path, tmp_path: Path
):
    context = in_process(probed, start=start, lr=1e-9, batch=7, group=2, order="shuffled")
    run_recover(context, "recover")
    found = recovered(probed)
    train = context.dataset.train
    assert found["labels"].tolist() == [*range(10), *range(10)]
    if start == "rded":  # Crops of the images, which the stage chooses by the same teacher.
        teacher, about = context.network("probe", "teacher.safetensors")
        source = with_statistics(train, about["mean"], about["std"])
        chosen = choose_start(context.cfg.recover, source, teacher, 2, context.cfg.seed, CPU)
        truth = read_chosen(train, chosen, torch.arange(20)).numpy()
        assert np.abs(found["images"].astype(int) - truth.astype(int)).max() <= 1
        return
    images = train.read(torch.arange(len(train))).numpy()
    for image, label in zip(found["images"], found["labels"], strict=True):
        off = np.abs(images.astype(int) - image.astype(int)).max(axis=(1, 2, 3))
        matches = train.labels[np.flatnonzero(off <= 1)].tolist()
        assert matches and set(matches) == {label}


def in_process(run: Path, **recover: object) -> Context:
    changed = {f"recover__{name}": value for name, value in recover.items()}
    settings = load_config("digits", tiny_run.overrides(**changed))
    return Context(settings, RunDirectory(run), CPU, ("squeeze", "probe", "recover"))


@pytest.mark.parametrize(
    ("limit", "file", "finished"),
    [
        (3_500, "metrics.jsonl", 0),
        (5_500, "recover/shards/batch-00000.safetensors", 0),
        (10_000, "recover/rows", 3),
    ],
)
def test_a_full_disk_is_one_sentence_and_finished_groups_stay(
    limit: int, file: str, finished: int, probed: Path
):
    # A limit on the size of files stands in for a full disk: both end a write with an error.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    context = in_process(probed, batch=4, group=2)
    if file != "metrics.jsonl":  # Or what squeeze has logged would be in the way.
        (probed / "metrics.jsonl").unlink()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(RunError) as caught:
            run_recover(context, "recover")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    folder = probed / "recover"
    assert str(caught.value) == (
        f"{probed / file}: no space left to write it; free some and run the same command again"
    )
    shards = [*folder.glob("shards/*.safetensors")]
    assert len(shards) == finished
    assert run_recover(context, "recover") == ("images.h5",)
    assert len(recovered(probed)["images"]) == 20
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
