"""`scdd distill --dry-run`: every step with its work, and nothing made."""

import os
from pathlib import Path

from tests import tiny_run
from tests.cli.conftest import Run, cells, refused


def test_a_dry_run_shows_every_step_and_makes_nothing(warm_command: Run, tmp_path: Path):
    outcome = warm_command("distill", "digits", *tiny_run.changes(), "--dry-run", "--out", "run")
    rows = cells(outcome)
    assert [*rows] == [*tiny_run.STEPS, "all"]
    assert sorted(os.listdir(tmp_path)) == ["stderr.txt", "stdout.txt"]
    assert "120 training images of 16 px, 10 classes, ipc 2" in outcome.stdout
    work = {step: rows[step][0] for step in tiny_run.STEPS}
    # 20 images x 4 iterations; 20 x 4 views; 3 files x 2 kinds of label x 12 epochs x 20 images.
    assert work["recover"] == work["recover_real"] == "80 x resnet8"
    assert work["relabel"] == work["relabel_real"] == work["baseline"] == "80 x resnet8"
    assert work["posttrain"] == "1.44e+03 x resnet8"
    # The images; ten float16 logits a view, with its crop, partner, box and group, of 20 bytes in
    # the file, and once more in the shards, where these take 24.
    disk = 20 * 3 * 16 * 16 + 20 * 4 * (20 + 20) + 20 * 4 * (20 + 24)
    assert rows["relabel"][2] == f"{disk / 1000:.1f} kB"
    assert "FLOPs" in outcome.stdout and "Memory: " in outcome.stdout


def test_a_dry_run_refuses_what_the_run_would(warm_command: Run):
    for change, said in (
        (["--set", "ipc=1000"], "class '0' has 142 training images, but ipc is 1000"),
        (["--until", "bogus"], "--until bogus: no such step"),
        (["--redo", "nope"], "--redo nope: no such step"),
    ):
        refused(warm_command("distill", "--dry-run", *change), said)
