"""The step relabel: what each codec leaves, and that it is what the teacher says."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scdd.distilled import DistilledFile
from tests import tiny_run
from tests.conftest import Outcome

Run = Callable[..., Outcome]


def relabelled(command: Run, run: Path, **settings: object) -> DistilledFile:
    """The distilled file of a copied run whose step relabel is done again with other settings."""
    changes = tiny_run.changes(recover_real="null", **settings)
    outcome = command(
        "distill", "digits", "--out", str(run), *changes, "--until", "relabel", "--redo", "relabel"
    )
    assert outcome.returncode == 0, outcome.stderr
    return DistilledFile(run / "distilled.h5")


@pytest.mark.parametrize(
    ("codec", "bytes_a_label", "farthest"),
    [("int8", 14, 0.004), ("int4", 9, 0.034), ("topk", 3 * 3 + 2, None)],
)
def test_a_codec_stores_what_the_full_store_holds_in_fewer_bytes(
    warm_command: Run, copied_run: Path, codec: str, bytes_a_label: int, farthest: float | None
):
    with DistilledFile(copied_run / "distilled.h5") as full:
        wanted = torch.stack([full.logits(view) for view in range(4)])
        records = full.label_bytes - 4 * 20 * 10 * 2
    with relabelled(warm_command, copied_run, relabel__codec=codec, relabel__top=3) as file:
        found = torch.stack([file.logits(view) for view in range(4)])
        assert file.label_bytes == records + 4 * 20 * bytes_a_label
    if farthest is None:
        largest, order = wanted.topk(3, dim=-1)
        assert torch.equal(found.gather(-1, order), largest)
    else:
        extent = wanted.amax(-1, keepdim=True) - wanted.amin(-1, keepdim=True)
        assert ((found - wanted).abs() <= farthest * extent).all()


def test_without_soft_labels_the_same_views_serve_class_labels(warm_command: Run, copied_run: Path):
    with DistilledFile(copied_run / "distilled.h5") as full:
        wanted = full.views
    settings = {"relabel__codec": "hard", "posttrain__labels": "[hard]"}
    with relabelled(warm_command, copied_run, **settings) as file:
        assert file.codec is None and file.header.target_kind == "none"
        assert wanted is not None and file.views is not None
        for name, values in wanted.parameters.items():
            assert torch.equal(file.views.parameters[name], values)
    outcome = warm_command(
        "distill",
        "digits",
        "--out",
        str(copied_run),
        *tiny_run.changes(recover_real="null", **settings),
        "--redo",
        "baseline",
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "| distilled" in outcome.stdout


def test_soft_labels_that_are_not_stored_are_not_trained_on(warm_command: Run, tmp_path: Path):
    outcome = warm_command(
        "distill", "digits", "--out", str(tmp_path / "run"), "--set", "relabel.codec=hard"
    )
    assert outcome.returncode == 2
    assert "relabel.codec is hard, which stores no soft labels" in outcome.stderr
    assert "posttrain.labels=[hard]" in outcome.stderr


def test_what_cannot_be_done_again_is_refused_before_anything_is_moved(
    warm_command: Run, copied_run: Path
):
    before = sorted(path for path in copied_run.rglob("*") if path.name != "run.lock")
    changes = tiny_run.changes(relabel__codec="topk", relabel__top=10)
    outcome = warm_command(
        "distill", "digits", "--out", str(copied_run), *changes, "--redo", "relabel"
    )
    assert outcome.returncode == 2 and "relabel.top is 10, not in 1 .. 9" in outcome.stderr
    assert sorted(path for path in copied_run.rglob("*") if path.name != "run.lock") == before
