"""The step relabel in shards: kills, ranks, the disk that it takes, images out of memory."""

import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from scdd.checkpoint import load_weights, save_weights
from scdd.config.load import load_config
from scdd.distilled import label_sizes
from scdd.errors import RunError
from scdd.run import RunDirectory
from scdd.steps import Context, run_relabel
from tests import tiny_run
from tests.conftest import FinishedRun, Outcome
from tests.killed_rank import kill_a_rank

Run = Callable[..., Outcome]


def copied(run: Path, target: Path) -> Path:
    """A run that has its teacher and images and nothing after them."""
    for step in ("squeeze", "probe", "recover"):
        shutil.copytree(run / step, target / step)
    shutil.copy(run / "run.lock", target)
    return target


MANY = {"relabel__views": 230}
"""Three shards: 100 views of 20 images each, and 30 more."""
SHARDS = [f"views-{n:06}-{min(n + 99, 229):06}.safetensors" for n in (0, 100, 200)]


def command_for(run: Path, **settings: object) -> list[str]:
    changes = tiny_run.changes(**settings)
    return ["distill", "digits", "--out", str(run), "--until", "relabel", *changes]


@pytest.mark.slow  # Ten runs.
def test_killed_before_every_change_it_labels_no_view_twice_and_leaves_the_same_file(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    whole, run = (copied(finished_run.path, tmp_path / name) for name in ("whole", "run"))
    assert warm_command(*command_for(whole, **MANY)).returncode == 0
    survived: list[str] = []
    made: dict[str, int] = {}
    while True:
        outcome = warm_command(*command_for(run, **MANY), root=run, survive=survived)
        if outcome.killed_at is None:
            break
        survived.append(outcome.killed_at)
        for path in (run / "relabel").glob("shards/views-*.safetensors"):
            changed = path.stat().st_mtime_ns
            assert made.setdefault(path.name, changed) == changed, f"{path.name} was made again"
    assert outcome.returncode == 0, outcome.stderr
    assert sorted(made) == SHARDS
    assert_same_file(run, whole)
    names = {path.name for path in (run / "relabel").iterdir()}
    assert names == {"distilled.h5", "done.json", "settings.json"}


@pytest.mark.slow  # Several processes import torch.
def test_a_rank_that_dies_leaves_its_views_and_any_number_of_ranks_makes_the_rest(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    many = {"relabel__views": 3000}
    whole, run = (copied(finished_run.path, tmp_path / name) for name in ("whole", "run"))
    assert warm_command(*command_for(whole, **many)).returncode == 0
    shards = run / "relabel" / "shards"
    kill_a_rank(command_for(run, **many), shards, "views-*.safetensors", 3)
    assert 3 <= len(list(shards.glob("views-*.safetensors"))) < 30
    assert not (run / "relabel" / "distilled.h5").exists()
    # Marked, so that one that is made again would show.
    weights, about = load_weights(shards / "views-000000-000099.safetensors")
    marked = weights | {"labels.logits": torch.full_like(weights["labels.logits"], 3)}
    save_weights(shards / "views-000000-000099.safetensors", marked, about)
    assert warm_command(*command_for(run, **many)).returncode == 0
    ours, theirs = (tiny_run.arrays(one / "distilled.h5") for one in (run, whole))
    assert (ours["soft_labels/logits"][:100] == 3).all()
    for name, values in theirs.items():
        first = 100 if name == "soft_labels/logits" else 0
        assert np.array_equal(ours[name][first:], values[first:]), name


def assert_same_file(run: Path, whole: Path) -> None:
    ours, theirs = (tiny_run.arrays(one / "distilled.h5") for one in (run, whole))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(values, theirs[name]) for name, values in ours.items())
    assert tiny_run.digest(run / "distilled.h5") == tiny_run.digest(whole / "distilled.h5")


def in_process(run: Path, **settings: object) -> Context:
    cfg = load_config("digits", tiny_run.overrides(**settings))
    return Context(cfg, RunDirectory(run), torch.device("cpu"), ("relabel",))


def test_what_is_written_is_announced_and_refused_if_there_is_no_room(
    finished_run: FinishedRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    run = copied(finished_run.path, tmp_path / "run")
    # 20 labels of 10 float16; of an image a crop of 8 bytes, 2 bytes of partner and group, a box of
    # 8 in the file, 4 bytes of the former outside; no flip.
    labels, views, shards = 230 * 400, 230 * 20 * (8 + 2 + 8 + 2), 230 * 20 * (8 + 4 + 8 + 4)
    wanted = 2 * labels + views + shards + 20 * 3 * 16 * 16
    usage = shutil.disk_usage(run)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=wanted - 1))
    with pytest.raises(RunError) as caught:
        run_relabel(in_process(run, **MANY), "relabel")
    assert str(caught.value) == (
        f"{run / 'relabel'}: wants 401.8 kB of disk, but 401.8 kB are free; free some and run the "
        "same command again, or lower relabel.views or choose another relabel.codec"
    )
    assert not list((run / "relabel").iterdir())
    assert capsys.readouterr().out == (
        "  soft labels: 92.0 kB (full), views: 92.0 kB; 401.8 kB of disk until the step is done\n"
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=wanted))
    run_relabel(in_process(run, **MANY), "relabel")
    found = tiny_run.arrays(run / "relabel" / "distilled.h5")
    assert sum(v.nbytes for n, v in found.items() if n.startswith("soft_labels/")) == labels
    assert sum(v.nbytes for n, v in found.items() if n.startswith("views/")) == views


@pytest.mark.parametrize(
    "settings",
    [
        {"flip": "true", "codec": "int8", "teacher_bn": "running"},
        {"randaugment": "{count: 3}", "mix": "mixup", "codec": "topk", "top": 4},
        {"crop": "none", "mix": "none", "teacher_bn": "running", "codec": "teacher"},
    ],
)
def test_the_sizes_that_are_announced_are_those_of_what_is_written(
    settings: dict[str, object], finished_run: FinishedRun, tmp_path: Path
):
    run = copied(finished_run.path, tmp_path / "run")
    context = in_process(run, **{f"relabel__{name}": value for name, value in settings.items()})
    run_relabel(context, "relabel")
    found = tiny_run.arrays(run / "relabel" / "distilled.h5")
    sizes = label_sizes(context.cfg.relabel, 20, 16, 10)
    for group, size in (("soft_labels/", sizes.labels), ("views/", sizes.views)):
        assert sum(v.nbytes for name, v in found.items() if name.startswith(group)) == size


def test_a_full_disk_is_one_sentence_and_finished_views_stay(
    finished_run: FinishedRun, tmp_path: Path
):
    run = copied(finished_run.path, tmp_path / "run")
    # A limit on the size of files stands in for a full disk: both end a write with an error.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, hard))
        with pytest.raises(RunError, match=r"distilled\.h5: no space left to write it; free some"):
            run_relabel(in_process(run, **MANY), "relabel")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in (run / "relabel" / "shards").iterdir()) == SHARDS
    run_relabel(in_process(run, **MANY), "relabel")
    assert [path.name for path in (run / "relabel").iterdir()] == ["distilled.h5"]


def test_images_that_are_too_many_for_memory_are_labelled_from_a_file(
    finished_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, run = (copied(finished_run.path, tmp_path / name) for name in ("whole", "run"))
    run_relabel(in_process(whole), "relabel")
    monkeypatch.setattr("scdd.steps.relabel.IMAGES_IN_MEMORY", 1000)
    monkeypatch.setattr("scdd.steps.relabel.READ_BYTES", 3000)  # Three images and some bytes.
    run_relabel(in_process(run), "relabel")
    assert_same_file(run / "relabel", whole / "relabel")
    assert [path.name for path in (run / "relabel").iterdir()] == ["distilled.h5"]
