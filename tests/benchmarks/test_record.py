"""A finished run as a result file, whoever made its steps; and what is no finished run."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import record as script
from benchmarks.record import record
from scdd.checkpoint import load_weights
from tests.conftest import FinishedRun, child_environment


def test_a_run_whose_teacher_was_taken_over_is_recorded_as_any_other(
    finished_run: FinishedRun, copied_run: Path
):
    metrics = copied_run / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text(
        "".join(line for line in lines if json.loads(line)["stage"] not in ("squeeze", "probe"))
    )
    found = record(copied_run)
    assert found == record(finished_run.path)
    _, about = load_weights(copied_run / "probe" / "teacher.safetensors")
    assert found["teacher_top1"] == about["val_top1"] > 0


def test_a_run_that_is_not_finished_is_refused_in_a_sentence(copied_run: Path, tmp_path: Path):
    (copied_run / "report" / "done.json").unlink()
    target = tmp_path / "x.json"
    done = subprocess.run(
        [sys.executable, script.__file__, copied_run, target],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    expected = f"error: {copied_run}: is not a finished run; finish it with scdd distill\n"
    assert done.stderr == expected and not target.exists()
