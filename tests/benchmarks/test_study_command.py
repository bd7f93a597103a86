"""A study stops and goes on, shares, records, refuses; stopped anywhere it ends with the same."""

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import study as command
from benchmarks.tables import build_table
from scdd.deadline import Deadline
from scdd.errors import ConfigError, DiskFull, OutOfTime, RunError, UserError
from tests import tiny_run
from tests.conftest import child_environment

PLANS = sorted((Path(command.__file__).parent / "plans").glob("*.yaml"))
SMALL = [*tiny_run.overrides(posttrain__epochs=6), "recover_real=null", "probe.floor=0"]
TEACHER = {
    "name": "teacher",
    "preset": "digits",
    "set": SMALL,
    "until": "probe",
    "scores": ["teacher"],
}
RUN = {"name": "run", "preset": "digits", "set": SMALL}
ROWS = [
    TEACHER | {"target": "45.4 (Table 18)"},
    RUN | {"scores": ["distilled, soft", "random real, hard"]},
    RUN | {"name": "longer", "set": [*SMALL, "posttrain.epochs=8"], "seeds": 2},
]
APP = {
    "name": "app",
    "app": "crossarch",
    "of": "run",
    "arguments": ["--arch", "resnet8", "--epochs", "4"],
    "needs_minutes": 0.1,
}
VIEWS = ["--images", "64", "--batch", "32", "--size", "8", "--rounds", "1", "--workers", "1"]
SCRIPT = {"name": "s", "script": "augment_throughput", "arguments": VIEWS, "needs_minutes": 0.1}


def written(path: Path, *rows: dict, **changes: object) -> Path:
    """A plan as a file; JSON is YAML."""
    path.write_text(json.dumps({"title": "Tiny", "rows": rows or ROWS} | changes))
    return path


def study(plan: Path, out: Path, *words: object, minutes: float = 60) -> None:
    words = (plan, "--minutes", minutes, "--out", out, "--device", "cpu", *words)
    command.main([str(word) for word in words])


def started(plan: Path, out: Path, *words: object, minutes: float = 60) -> subprocess.Popen[str]:
    given = [plan, "--minutes", minutes, "--out", out, "--device", "cpu", *words]
    return subprocess.Popen(
        [sys.executable, command.__file__, *map(str, given)],
        env=child_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def record(out: Path, name: str) -> dict:
    return json.loads((out / "rows" / f"{name}.json").read_text())


def assert_same_study(out: Path, other: Path) -> None:
    """Rows have the same scores, runs the same images and labels."""
    rows = sorted(path.name for path in (other / "rows").iterdir())
    assert sorted(path.name for path in (out / "rows").iterdir()) == rows
    for row in rows:
        ours, theirs = record(out, Path(row).stem), record(other, Path(row).stem)
        for key in ("scores", "students", "asked", "teacher_top1"):
            assert ours.get(key) == theirs.get(key), f"{row}: {key}"
    for file in sorted(other.glob("runs/*/*.h5")):
        assert tiny_run.digest(out / file.relative_to(other)) == tiny_run.digest(file)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study, made without a stop: look only."""
    folder = tmp_path_factory.mktemp("whole")
    study(written(folder / "plan.yaml"), folder / "out", "--result", folder / "result.json")
    return folder / "out"


def test_rows_share_what_they_have_in_common_and_say_what_they_found(whole: Path):
    teachers = [whole / "runs" / n / "squeeze/backbone.safetensors" for n in ("teacher-0", "run-0")]
    assert teachers[0].stat().st_ino == teachers[1].stat().st_ino
    other = whole / "runs" / "longer-1" / "squeeze" / "backbone.safetensors"
    assert other.stat().st_ino != teachers[0].stat().st_ino, "another seed, another teacher"
    row = record(whole, "run-0")
    truth = {(r["arm"], r["labels"]): r["top1"] for r in tiny_run.scores(whole / "runs" / "run-0")}
    assert row["scores"] == {
        "distilled, soft": truth["distilled", "soft"],
        "random real, hard": truth["random real", "hard"],
    }
    assert record(whole, "teacher-0")["scores"]["teacher"] == row["teacher_top1"]
    assert row["seconds"]["squeeze"] == record(whole, "teacher-0")["seconds"]["squeeze"] > 0
    assert {"commit", "environment", "config"} <= row.keys()


def test_the_result_of_a_study_becomes_a_table_beside_what_others_report(whole: Path):
    shown = build_table(whole.parent / "result.json")
    assert "| 45.4 (Table 18) |" in shown
    scores = [record(whole, f"longer-{seed}")["scores"]["distilled, soft"] for seed in (0, 1)]
    assert f"{sum(scores) / 2:.1f} +- " in shown


def test_what_is_finished_is_not_made_again_and_nothing_is_touched(
    whole: Path, capsys: pytest.CaptureFixture[str]
):
    files = {path: path.stat().st_mtime_ns for path in whole.rglob("*.h5")}
    study(whole.parent / "plan.yaml", whole)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*.h5")} == files
    printed = capsys.readouterr().out
    assert printed.count(" done |") == 4 and "running" not in printed


class Questions(Deadline):
    """Over after so many questions how much is left; the study's own is never over."""

    def __init__(self, seconds: float, paces: object, asked: Iterator[int]) -> None:
        super().__init__(math.inf)
        self.questions = next(asked)

    @property
    def left(self) -> float:
        self.questions -= 1
        return 0.0 if self.questions < 0 else math.inf


def test_stopped_anywhere_and_carried_to_another_folder_in_pieces_it_ends_with_the_same(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    draw, stops = random.Random(5), 0
    asked = iter(lambda: draw.randrange(8, 28), None)
    monkeypatch.setattr("study_jobs.Deadline", lambda s, p, _: Questions(s, p, asked))
    plan, pieces = written(tmp_path / "plan.yaml", ROWS[1]), tmp_path / "pieces"
    out = tmp_path / "0"
    while stops < 60:
        try:
            study(plan, out, "--pieces", pieces, "--piece", "50kB")
            break
        except OutOfTime as stop:
            assert "rows are done and the 60 minutes over; the same command goes on" in str(stop)
            stops += 1
            out = tmp_path / str(stops)
    assert stops >= 3, "each time in a folder of its own"
    for name in ("scores", "students"):
        assert record(out, "run-0")[name] == record(whole, "run-0")[name]
    file = Path("runs", "run-0", "distilled.h5")
    assert tiny_run.digest(out / file) == tiny_run.digest(whole / file)


def test_what_does_not_fit_is_not_begun_and_a_later_row_that_does_is_made(tmp_path: Path):
    """Rates as an earlier session would have left them: a first checkpoint after 1,000 s."""
    other = [*SMALL, "squeeze.batch=14"]
    plan = written(tmp_path / "p", TEACHER, TEACHER | {"name": "other", "set": other})
    out = tmp_path / "out"
    out.mkdir()
    rates = {"schema": "scdd rates 1", "devices": {"cpu": {"paces": {}}}}
    paces = rates["devices"]["cpu"]["paces"]
    long, short = {"start": 1000, "gap": 1, "save": 1}, {"start": 1, "gap": 1, "save": 1}
    for batch, pace in ((16, long), (14, short)):
        paces[f"squeeze, 16 px; resnet8 moco_v2 batch {batch} precision auto"] = pace
    paces["probe, 16 px; lbfgs batch 256; resnet8"] = short
    study_json = {"schema": "scdd study folder 1", "title": "Tiny", "turn": 1}
    (out / "study.json").write_text(json.dumps(study_json))
    (out / "rates.json").write_text(json.dumps(rates))
    teacher_alone = written(tmp_path / "q", TEACHER)
    with pytest.raises(ConfigError, match="too few for a single checkpoint; teacher-0 wants 17 mi"):
        study(teacher_alone, out, minutes=10)
    assert not (out / "runs" / "teacher-0" / "squeeze").exists()
    with pytest.raises(OutOfTime, match="1 of 2 rows are done"):
        study(plan, out, minutes=10)
    assert not (out / "runs" / "teacher-0" / "squeeze").exists()
    assert record(out, "other-0")["scores"].keys() == {"teacher"}
    new = TEACHER | {"name": "new", "set": [*SMALL, "squeeze.batch=12"]}
    with pytest.raises(OutOfTime, match="1 of 2 rows are done"):
        study(written(plan, TEACHER, new), out, minutes=10)
    assert record(out, "new-0")["scores"].keys() == {"teacher"}, "of which nothing was known"


def test_a_row_that_cannot_go_on_is_kept_with_its_reason_and_tried_again_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    weak = RUN | {"set": [*SMALL, "probe.floor=99.9"]}
    app = {"name": "app", "app": "crossarch", "of": "run"}
    plan = written(tmp_path / "p", weak, app, TEACHER | {"name": "good"})
    out = tmp_path / "out"
    for words, tried in (((), True), ((), False), (("--retry",), True), (None, True)):
        if words is None:
            (out / "failed" / "run-0.json").write_text("{")  # Nothing can be read in it.
        with pytest.raises(RunError, match=r"1 of 3 rows are done; run-0 cannot go on, nor"):
            study(plan, out, *(words or ()))
        printed = capsys.readouterr().out
        assert ("probe: running" in printed) == tried
        assert "run-0: " in printed and "99.9" in printed
        assert record(out, "good-0")["scores"]["teacher"] > 0


def test_a_half_made_row_that_the_plan_asks_for_otherwise_says_what_to_move(tmp_path: Path):
    out = tmp_path / "out"
    study(written(tmp_path / "p", TEACHER), out)
    (out / "rows" / "teacher-0.json").unlink()
    changed = TEACHER | {"set": [*SMALL, "squeeze.batch=14"]}
    with pytest.raises(
        RunError, match=r"squeeze.batch = 16, now it is 14; .* \(here: move .* away\)"
    ):
        study(written(tmp_path / "p", changed), out)


def test_a_full_disk_ends_the_study_and_finished_rows_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan, out = written(tmp_path / "p", TEACHER, RUN), tmp_path / "out"
    study(written(tmp_path / "q", TEACHER), out)

    def full(*_: object, **__: object) -> None:
        raise DiskFull("x: no space left to write it")

    def of_the_system(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    pieces = tmp_path / "elsewhere"
    for distill in (full, of_the_system):
        monkeypatch.setattr("study_jobs.distill", distill)
        with pytest.raises(DiskFull, match="no space left"):
            study(plan, out, "--pieces", pieces)
        assert record(out, "teacher-0")["row"] == "teacher"
        assert not (out / "failed").exists(), "it is no fault of the row"
    command.fill_from(pieces, tmp_path / "other", "Tiny")
    assert record(tmp_path / "other", "teacher-0") == record(out, "teacher-0")


def test_the_time_of_a_row_that_was_moved_away_is_no_part_of_the_new_one(tmp_path: Path):
    plan, out = written(tmp_path / "p", TEACHER), tmp_path / "out"
    study(plan, out)
    path = out / "rates.json"
    rates = json.loads(path.read_text())
    rates["devices"]["cpu"]["spent"]["teacher-0"]["squeeze"] = 1e6
    path.write_text(json.dumps(rates))
    for name in ("runs/teacher-0", "rows/teacher-0.json"):
        (out / name).rename(tmp_path / Path(name).name)
    study(plan, out)
    assert record(out, "teacher-0")["seconds"]["squeeze"] < 1e6


def test_a_finished_row_that_the_plan_asks_for_otherwise_is_refused_with_the_key(
    whole: Path, tmp_path: Path
):
    changed = RUN | {"set": [*SMALL, "recover.lr=0.3"]}
    with pytest.raises(ConfigError) as caught:
        study(written(tmp_path / "p", changed), whole)
    assert "run-0.json: was made with another recover.lr than the plan has now" in str(caught.value)


def test_a_disk_that_is_full_to_an_app_is_no_fault_of_its_row(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, code = tmp_path / "out", "from scdd.files import refuse_if_full as f; "
    shutil.copytree(whole, out)
    code += "import pathlib; f(pathlib.Path('net'), OSError(28, ''))"
    monkeypatch.setattr("study_jobs.app_command", lambda *_: [sys.executable, "-c", code])
    with pytest.raises(DiskFull, match="net: no space left to write it"):
        study(written(tmp_path / "p", ROWS[1], APP), out)
    assert not (out / "failed").exists() and record(out, "run-0") == record(whole, "run-0")


def test_files_that_pieces_have_left_behind_are_made_again_for_an_app(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A later plan has an app on the file of a row that was over before there was that plan."""
    pieces, out = tmp_path / "pieces", tmp_path / "out"
    study(whole.parent / "plan.yaml", whole, "--pieces", pieces)
    given = []

    def tried(words: list[str], *_: object) -> object:
        given.append(Path(words[4]))
        return sys.modules["study_scripts"].Ended(1, 1.0, "error: that is all")

    monkeypatch.setattr("study_jobs.run_process", tried)
    row = ROWS[1]
    for rows in ([row, APP], [row, APP | {"file": "random_real.h5", "name": "other"}]):
        with pytest.raises(RunError, match="that is all"):
            study(written(tmp_path / "p", *rows), out, "--pieces", pieces)
    assert [path.name for path in given] == ["distilled.h5", "random_real.h5"]
    for path in given:
        assert tiny_run.digest(path) == tiny_run.digest(whole / "runs" / "run-0" / path.name)
    assert not (out / "runs" / "run-0" / "posttrain").exists(), "no more than that"
    assert record(out, "run-0") == record(whole, "run-0")


@pytest.mark.parametrize("plan", PLANS, ids=lambda path: path.stem)
def test_every_row_of_every_plan_that_is_shipped_can_be_made(plan: Path):
    found = command.read_plan(plan)
    jobs = command.jobs_of(plan, found, {})
    assert {job.row.name for job in jobs} == {row.name for row in found.rows}
    assert all(getattr(job.row, "target", "") != "" for job in jobs) or plan.stem != "3_tiny"


def test_the_estimate_counts_a_shared_teacher_once_and_says_what_is_assumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    plan = written(tmp_path / "p")
    command.main([str(plan), "--estimate", "--device", "cpu", "--tflops", "1e-6"])
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if "|" in line}
    assert "squeeze" in lines["teacher-0"] and "squeeze" in lines["longer-1"]
    for row in ("run-0", "longer-0"):
        assert "squeeze" not in lines[row] and "posttrain" in lines[row]
    assert "assumed: squeeze, probe" in lines["teacher-0"]


def test_an_estimate_without_a_folder_reads_no_rates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rates.json").write_text("of something else")
    command.main([str(written(tmp_path / "p", TEACHER)), "--estimate", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert printed.startswith("Tiny\n"), "no device of which nothing is known"
    assert "assumed: squeeze, probe" in printed and "of a GPU, by default" in printed


@pytest.mark.parametrize(
    "content",
    [
        {"paces": {"squeeze": {"begin": 1}}},
        {"paces": {"squeeze": {"start": "1 s"}}},
        {"speeds": {"squeeze": 1}},
        {"commands": {"prune": None}},
        {"spent": []},
    ],
)
def test_rates_that_cannot_be_read_are_refused(content: dict, tmp_path: Path):
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"schema": "scdd rates 1", "devices": {"cpu": content}}))
    words = ["--estimate", "--device", "cpu", "--out", str(tmp_path)]
    with pytest.raises(ConfigError, match=r"is no file of rates .* move it away"):
        command.main([str(written(tmp_path / "p", TEACHER)), *words])


def test_what_was_measured_takes_the_place_of_what_is_assumed_on_another_machine_too(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rates = (whole / "rates.json").read_text()
    (tmp_path / "rates.json").write_text(rates.replace('"cpu"', '"NVIDIA H200"'))
    words = ["--estimate", "--out", tmp_path, "--device", "cpu", "--tflops", "1e-9"]
    command.main([str(word) for word in (whole.parent / "plan.yaml", *words)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "Tiny, on NVIDIA H200"
    (line,) = [shown for shown in printed if shown.startswith("| teacher-0")]
    spent = record(whole, "teacher-0")["seconds"]
    assert float(line.split("|")[2]) == pytest.approx(sum(spent.values()) / 60, abs=0.06)
    assert "measured" in line and "assumed" not in line


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([TEACHER | {"preset": "digit"}], "row teacher: unknown preset 'digit', did you mean"),
        ([TEACHER | {"sets": []}], "row teacher: sets: unknown key; known: name, title"),
        ([TEACHER | {"app": "prune"}], "row teacher: wants one of the keys preset, app, script"),
        ([{"name": "x"}], "row x: wants one of the keys preset, app, script"),
        (["x"], "row 1: wants one of the keys preset, app, script"),
        ([TEACHER, TEACHER], "rows: teacher stands there twice; name it once"),
        ([TEACHER | {"name": "../x"}], "rows: '../x' cannot be the name of a file"),
        ([TEACHER | {"set": ["recover.iteration=5"]}], "row teacher: --set recover.iteration=5"),
        ([TEACHER | {"until": "probing"}], "row teacher: --until probing: no such step; steps:"),
        ([TEACHER | {"data": "cifar"}], "row teacher: data: is cifar, but the plan's data are"),
        ([TEACHER | {"data": "given"}], "row teacher: data: give --data given=DIR"),
        ([RUN | {"scores": ["distilled"]}], "row run: scores: no network has 'distilled'; known:"),
        ([RUN | {"until": "probe"}], "row run: scores: 'distilled, soft' wants students, but"),
        ([TEACHER | {"until": "squeeze"}], "scores: method scdd that ends after squeeze has no te"),
        (
            [TEACHER, {"name": "a", "app": "prune", "of": "teacher"}],
            "row a: file: teacher makes no distilled.h5",
        ),
        (
            [RUN, {"name": "a", "app": "prune", "of": "run", "file": "real_start.h5"}],
            "row a: file: run makes no real_start.h5",
        ),
        (
            [RUN, {"name": "run-0", "app": "prune", "of": "run"}],
            "row run-0: is also the name of seed 0 of run; choose another",
        ),
        (
            [RUN, {"name": "a", "app": "prune", "of": "runs"}],
            "row a: of: is runs, but the runs before it are run",
        ),
        ([{"name": "s", "script": "clusters"}], "row s: script: Input should be"),
        (
            [RUN, {"name": "s", "script": "gpu_hours", "of": "run"}],
            "row s: of: gpu_hours takes no run directory",
        ),
        (
            [{"name": "s", "script": "label_storage"}],
            "row s: of: label_storage wants a run directory",
        ),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused_before_anything_runs(
    rows: list, said: str, tmp_path: Path
):
    plan = tmp_path / "plan.yaml"
    images = {"given": {"train": 100, "classes": 10}, "other": {"train": 100, "classes": 10}}
    plan.write_text(json.dumps({"title": "Tiny", "data": images, "rows": rows}))
    with pytest.raises(ConfigError) as caught:
        study(plan, tmp_path / "out")
    assert str(caught.value).startswith(f"{plan}: ") and said in str(caught.value)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--minutes", "0"], "--minutes 0: wants more than 0"),
        (["--minutes", "nan"], "--minutes nan: wants more than 0"),
        (["--estimate", "--tflops", "0"], "--tflops 0: wants more than 0"),
        (["--estimate", "--step-ms", "-1"], "--step-ms -1: wants more than 0"),
        (["--data", "x"], "--data x: wants NAME=DIR"),
        (["--data", "x=/nowhere"], "the plan has no images 'x'; it has: none"),
    ],
)
def test_options_that_cannot_serve_are_refused(words: list[str], said: str, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        study(written(tmp_path / "p"), tmp_path / "out", *words)
    assert said in str(caught.value) and not (tmp_path / "out").exists()


def test_an_unknown_key_of_images_is_not_told_the_keys_of_a_plan(tmp_path: Path):
    plan = written(tmp_path / "p", data={"cifar10": {"train": 9, "classes": 3, "px": 32}})
    with pytest.raises(ConfigError, match=r"p: data\.cifar10\.px: unknown key$"):
        study(plan, tmp_path / "out")


def test_a_copy_without_its_repository_wants_its_commit_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("record.ROOT", tmp_path)
    monkeypatch.setenv("SCDD_COMMIT", "")
    plan, out = written(tmp_path / "p", TEACHER), tmp_path / "out"
    with pytest.raises(UserError, match=r"git tells no commit of it; .* say the commit"):
        study(plan, out)
    assert not out.exists()
    study(plan, out, "--commit", "abc1234")
    assert record(out, "teacher-0")["commit"] == "abc1234"


def test_pieces_are_refused_before_anything_runs_where_they_cannot_be(tmp_path: Path):
    with pytest.raises(UserError, match=r"--pieces .* lies in .*; choose a folder beside it"):
        study(written(tmp_path / "p"), tmp_path / "out", "--pieces", tmp_path / "out" / "pieces")
    assert not (tmp_path / "out").exists()


def test_what_a_killed_study_had_begun_is_waited_for(tmp_path: Path):
    """It would work on in the folder of its row."""
    out = tmp_path / "out"
    code = (
        f"import sys; sys.path.append({str(Path(command.__file__).parent)!r})\n"
        "from pathlib import Path; from study_folder import StudyFolder\n"
        "from study_scripts import run_process\n"
        f"folder, own = StudyFolder(Path({str(out)!r})), 'import os, time; print(os.getpid()); '\n"
        "with folder.held('Tiny'):\n"
        "    words = [sys.executable, '-uc', own + 'time.sleep(600)']\n"
        "    run_process(words, folder.path / 'log.txt', 600, folder.lock)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=child_environment())
    log, folder = out / "log.txt", sys.modules["study_folder"].StudyFolder(out)
    while not (log.exists() and log.read_text().endswith("\n")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    try:
        with pytest.raises(UserError, match="or an app or script that it has begun; wait for it"):
            folder.held("Tiny").__enter__()
    finally:
        os.kill(int(log.read_text()), signal.SIGKILL)
    for _ in range(600):
        try:
            with folder.held("Tiny") as turn:
                break
        except UserError:
            time.sleep(0.05)
    assert turn == 2


def test_a_folder_of_something_else_is_not_used(tmp_path: Path, whole: Path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="is no folder of a study; choose another --out"):
        study(written(tmp_path / "p"), tmp_path)
    with pytest.raises(UserError, match="belongs to the study 'Tiny', not 'Other'"):
        study(written(tmp_path / "p", title="Other"), whole)


def test_a_process_is_ended_when_its_time_is_over_and_its_last_words_are_kept(tmp_path: Path):
    run = sys.modules["study_scripts"].run_process
    code = "import time; print('begun', flush=True); time.sleep(60)"
    ended = run([sys.executable, "-c", code], tmp_path / "log.txt", 5.5)
    assert ended.code is None and ended.said == "begun" and ended.seconds < 10
    code = "raise SystemExit('error: no such thing')"
    ended = run([sys.executable, "-c", code], tmp_path / "log.txt", 60)
    assert ended.code == 1 and ended.said == "error: no such thing"


@pytest.mark.slow
def test_real_processes_killed_and_stopped_at_random_end_with_the_same(whole: Path, tmp_path: Path):
    plan, out, draw = written(tmp_path / "p", *ROWS), tmp_path / "out", random.Random(11)
    codes = []
    for turn in range(40):
        seconds = draw.uniform(3, 5) * 1.25**turn
        if turn % 2:
            process = started(plan, out)
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
        else:
            process = started(plan, out, minutes=seconds / 60)
        process.communicate()
        codes.append(process.returncode)
        if process.returncode == 0:
            break
        assert process.returncode in (3, 2, -signal.SIGKILL)
    assert codes[-1] == 0 and len(codes) > 1, codes
    assert_same_study(out, whole)


def turn_of(out: Path) -> int:
    """How often a study was gone on with."""
    path = out / "study.json"
    return json.loads(path.read_text())["turn"] if path.exists() else 0


@pytest.mark.slow
def test_apps_and_scripts_are_rows_and_a_signal_ends_the_study_with_its_code(tmp_path: Path):
    plan, out = written(tmp_path / "p", RUN, APP, SCRIPT), tmp_path / "out"
    for turn, (number, code) in enumerate(((signal.SIGTERM, 143), (signal.SIGINT, 130)), start=1):
        process = started(plan, out)
        while turn_of(out) < turn:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate()
        assert process.returncode == code
        assert said.endswith("stopped: what is finished is kept; run the same command again\n")
    process = started(plan, out, "--result", tmp_path / "r.json")
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert record(out, "app")["result"]["schema"] == "scdd crossarch 1"
    assert record(out, "s")["result"]["schema"] == "scdd throughput 1"
    for name in ("r", "r_app", "r_s"):
        assert build_table(tmp_path / f"{name}.json")


def test_a_row_shows_its_teacher_or_its_networks():
    score_of = sys.modules["study_plan"].score_of
    rows = [{"arm": "distilled", "labels": "soft", "top1": top1} for top1 in (50.0, 51.0)]
    facts = {"students": rows, "teacher_top1": 45.4}
    assert score_of(facts, "distilled, soft") == 50.5
    assert score_of(facts, "teacher") == 45.4
