"""Ablations: shipped studies can run, differences are paired, steps shared, a kill costs little."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from benchmarks import ablations
from benchmarks.ablation_study import Study, differences, paired, read_study
from benchmarks.scores import scores_of, top1_of
from benchmarks.tables import build_table
from scdd.config.load import read_run_config
from scdd.config.run import RunConfig
from scdd.datasets import load_dataset
from scdd.errors import ConfigError, RunError
from scdd.pipeline import plan
from scdd.steps import check_later_steps
from tests import tiny_run
from tests.conftest import FinishedRun, child_environment

FOLDER = Path(ablations.__file__).parent / "ablations"
STUDIES = sorted(FOLDER.glob("*.yaml"))
KNOWN_METHODS = RunConfig.model_fields["method"].annotation.__args__

TINY = {
    "title": "Tiny",
    "paper": "none",
    "scale": "cpu",
    "preset": "digits",
    "set": [*tiny_run.overrides(posttrain__epochs=4), "recover_real=null", "probe.floor=0"],
    "seeds": 1,
    "scores": ["distilled, soft"],
    "arms": [
        {"name": "one"},
        {"name": "hard", "scores": ["random real, hard"]},
        {"name": "longer", "set": ["posttrain.epochs=8"], "paper": "1.0", "against": "hard"},
    ],
}


def written(path: Path, **changes: object) -> Path:
    """A study as a file; JSON is YAML."""
    path.write_text(json.dumps(TINY | changes))
    return path


def script(*words: object) -> list[str]:
    return [sys.executable, ablations.__file__, *map(str, words), "--device", "cpu"]


def ran(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        script(*words), env=child_environment(), capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_arm_of_every_study_that_is_shipped_can_be_planned(path: Path):
    study = read_study(path)
    assert (study.scale == "gpu") == path.stem.endswith("_gpu")
    for arm in study.arms:
        methods = [word.removeprefix("method=") for word in arm.set if word.startswith("method=")]
        if not set(methods) <= set(KNOWN_METHODS):
            continue  # Not there yet.
        data = Path("/images") if study.needs_data else None
        cfg = ablations.arm_config(study, arm, 0, data)
        plan(cfg)
        if methods != ["random"]:
            ablations.check_scores(study, arm, cfg)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_arms_of_a_study_differ(path: Path):
    study = read_study(path)
    seen = [(arm.set, arm.scores) for arm in study.arms]
    assert len(set(seen)) == len(seen)


def test_arms_that_are_on_the_digits_fit_their_images():
    dataset = load_dataset(ablations.arm_config(*_first("recovery_iterations"), 0, None).dataset)
    for path in STUDIES:
        study = read_study(path)
        if study.preset == "digits":
            for arm in study.arms:
                cfg = ablations.arm_config(study, arm, 0, None)
                check_later_steps(cfg, dataset)


def _first(name: str) -> tuple[Study, object]:
    study = read_study(FOLDER / f"{name}.yaml")
    return study, study.arms[0]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=8))
def test_a_verdict_is_that_of_a_paired_t_value_of_two(pairs: list[tuple[float, float]]):
    gaps = [a - b for a, b in pairs]
    found = paired(gaps)
    assert found["mean"] == pytest.approx(statistics.mean(gaps)) and found["n"] == len(gaps)
    if statistics.stdev(gaps) > 1e-6:
        value = ttest_rel([a for a, _ in pairs], [b for _, b in pairs]).statistic
        assert value == pytest.approx(found["mean"] / found["error"])
        if abs(abs(value) - 2) > 1e-9:
            assert found["verdict"] == ("+" if value > 2 else "-" if value < -2 else "0")


def test_one_run_of_each_arm_has_a_difference_but_no_error_and_no_verdict():
    assert paired([1.5]) == {"mean": 1.5, "error": None, "n": 1, "verdict": None}
    assert paired([0.0, 0.0])["verdict"] == "0" and paired([2.0, 2.0])["verdict"] == "+"


def test_differences_are_taken_seed_by_seed_and_only_of_finished_pairs(tmp_path: Path):
    study = read_study(written(tmp_path / "s.yaml"))
    table = {("one", 0): 10, ("one", 1): 50, ("hard", 0): 12, ("hard", 1): 54, ("longer", 1): 53}
    rows = [{"arm": arm, "seed": s, "scores": [score]} for (arm, s), score in table.items()]
    found = differences(study, rows)
    assert found["hard"][0] == {"mean": 3, "error": 1, "n": 2, "verdict": "+"}
    assert found["longer"][0] == {"mean": -1, "error": None, "n": 1, "verdict": None}


def test_a_score_is_the_mean_of_the_students_of_these_images_and_labels(
    finished_run: FinishedRun,
):
    rows = tiny_run.scores(finished_run.path)
    truth = [r["top1"] for r in rows if r["arm"] == "distilled, real start"]
    assert top1_of(rows, "distilled, real start, soft") in truth
    with pytest.raises(
        ConfigError,
        match="no network has the score 'random real, soft'; there are: distilled, hard",
    ):
        top1_of([row for row in rows if row["arm"] == "distilled"], "random real, soft")


@pytest.mark.parametrize("finetune", [None, {"iterations": 3, "flip": 0.0}])
def test_a_score_of_pre_trained_networks_is_their_mean_on_the_images_that_were_distilled(
    finetune: dict | None, pair_run: Path
):
    cfg = read_run_config(pair_run)
    tuned = cfg.pretrain.model_copy(update={"finetune": finetune})
    names = scores_of(cfg.model_copy(update={"pretrain": tuned}))
    rows = json.loads((pair_run / "results.json").read_text())["rows"]
    ways = ["linear probe", *(["fine-tuning"] if finetune else [])]
    arms = dict.fromkeys(row["arm"] for row in rows)
    assert names == [f"{arm}, {way}" for arm in arms for way in ways]
    own = [row["top1"] for row in rows if row["arm"] == "random real, class labels"]
    others = [row | {"task": "birds", "top1": 0.0} for row in rows]
    assert len(own) == 2
    found = top1_of([*rows, *others], "random real, class labels, linear probe")
    assert found == pytest.approx(sum(own) / 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"preset": "digit"}, "arm one: unknown preset 'digit', did you mean 'digits'?"),
        ({"sets": []}, "sets: unknown key; known: title, paper"),
        ({"arms": [{"name": "one"}]}, "arms: "),
        ({"arms": [{"name": "a"}, {"name": "a"}]}, "arms: a stands there twice"),
        ({"arms": [{"name": "a"}, {"name": "../b"}]}, "cannot be the name of a folder"),
        (
            {"arms": [{"name": "a"}, {"name": "b", "against": "c"}]},
            "b is against c, but the arms before it are a",
        ),
        (
            {"arms": [{"name": "a"}, {"name": "b", "set": ["recover.iteration=5"]}]},
            "arm b: --set recover.iteration=5: recover: unknown key 'iteration', did you mean",
        ),
        (
            {"arms": [{"name": "a"}, {"name": "b", "sett": []}]},
            "arms.1.sett: unknown key; known: name, title, set",
        ),
        (
            {"scores": ["distilled, real start, soft"]},
            "arm one: scores: no network has 'distilled, real start, soft'; known: distilled, soft",
        ),
        ({"needs_data": True}, "wants real images; give --data DIR"),
        (
            {"arms": [{"name": "a"}, {"name": "b", "set": ["posttrain.labels=[hard]"]}]},
            "arm b: scores: no network has 'distilled, soft'; known: distilled, hard",
        ),
        (
            {"arms": [{"name": "a"}, {"name": "b", "set": ["squeeze.arch=resnet8x3"]}]},
            "unknown architecture 'resnet8x3'",
        ),
    ],
)
def test_a_study_that_cannot_run_is_refused_before_anything_runs(
    changes: dict, said: str, tmp_path: Path
):
    study, out = written(tmp_path / "study.yaml", **changes), tmp_path / "out"
    with pytest.raises(ConfigError) as caught:
        ablations.main([str(study), "--out", str(out), "--device", "cpu"])
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"schema": "scdd result 1"}', "holds 'scdd result 1', not 'scdd ablation 1'"),
        (
            '{"schema": "scdd ablation 1", "study": "other"}',
            "of the study other, not 'scdd ablation 1' of the study study; choose another name",
        ),
        ("[1]", "is no result file"),
        ("{", "is no result file"),
    ],
)
def test_a_result_of_something_else_is_not_replaced(text: str, said: str, tmp_path: Path):
    study, result = written(tmp_path / "study.yaml"), tmp_path / "result.json"
    result.write_text(text)
    with pytest.raises(ConfigError) as caught:
        ablations.main(
            [str(study), "--out", str(tmp_path / "out"), "--result", str(result), "--device", "cpu"]
        )
    assert said in str(caught.value)
    assert result.read_text() == text and not (tmp_path / "out").exists()


def test_a_result_of_more_runs_is_not_replaced_by_one_of_fewer(tmp_path: Path):
    study, result = written(tmp_path / "study.yaml"), tmp_path / "result.json"
    text = '{"schema": "scdd ablation 1", "study": "study", "n": 3}'
    result.write_text(text)
    words = ["--out", str(tmp_path / "out"), "--result", str(result), "--device", "cpu"]
    with pytest.raises(ConfigError, match=r"is of 3 runs an arm, and 1 would be left; give"):
        ablations.main([str(study), *words])
    assert result.read_text() == text and not (tmp_path / "out").exists()


def test_other_settings_in_a_folder_are_told_without_an_option_that_a_study_does_not_have(
    copied_run: Path, tmp_path: Path
):
    run = tmp_path / "out" / "one-0"
    run.parent.mkdir()
    copied_run.rename(run)
    changes = {"set": [*TINY["set"], "recover.lr=0.3"], "arms": [{"name": "one"}, {"name": "b"}]}
    study = written(tmp_path / "study.yaml", **changes)
    with pytest.raises(ConfigError, match=rf"--redo \w+, .* \(here: move {run} away\)$"):
        ablations.main([str(study), "--out", str(run.parent), "--device", "cpu"])


def test_a_misspelt_key_is_named_before_the_one_that_is_missing_for_it(tmp_path: Path):
    path = tmp_path / "s.yaml"
    path.write_text(json.dumps({"titel": "T"} | {k: v for k, v in TINY.items() if k != "title"}))
    with pytest.raises(ConfigError, match="titel: unknown key; known: title"):
        read_study(path)


def test_what_an_arm_shares_with_another_is_taken_over_and_the_rest_is_not(
    copied_run: Path, tmp_path: Path
):
    study = {"out": tmp_path / "study"}
    done = study["out"] / "one-0"
    done.parent.mkdir()
    copied_run.rename(done)
    base = ablations.load_config("digits", tiny_run.overrides())
    for change, taken in (
        ("posttrain.epochs=13", {*tiny_run.STEPS} - {"posttrain", "report"}),
        ("recover.iterations=5", {"squeeze", "probe", "recover_real", "relabel_real", "baseline"}),
        ("seed=1", set()),
    ):
        cfg = ablations.load_config("digits", tiny_run.overrides() + [change])
        run = study["out"] / change
        ablations.share_steps(cfg, run)
        assert {marker.parent.name for marker in run.glob("*/done.json")} == taken
        for step in taken:
            for path in (done / step).rglob("*"):
                ours = run / path.relative_to(done)
                assert path.is_dir() or os.path.samefile(path, ours)
        assert not list(run.glob(".*")), "nothing half taken is left"
    again = study["out"] / "again"
    ablations.share_steps(base, again)
    ablations.distill(base, again, until="posttrain")
    assert tiny_run.scores(again) == tiny_run.scores(done)


def test_an_arm_that_cannot_go_on_is_named_after_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Divergence is not waited for: the run of one arm is made to say so."""
    study, result = written(tmp_path / "study.yaml"), tmp_path / "result.json"

    def row(study: Study, arm: object, seed: int, cfg: RunConfig, *_: object) -> dict:
        if arm.name == "hard":
            raise RunError("recover: batch 1 diverged")
        about = {"teacher_top1": 50.0, "val_images": 9, "students": [], "seconds": {"squeeze": 3}}
        return {"commit": "x", "arm": arm.name, "seed": seed, "scores": [10.0], **about}

    monkeypatch.setattr(ablations, "finished_row", row)
    words = [str(study), "--out", str(tmp_path / "out"), "--result", str(result)]
    with pytest.raises(RunError, match=r"1 of 3 runs could not be finished, such as hard-0 \(rec"):
        ablations.main([*words, "--device", "cpu"])
    assert [row["arm"] for row in json.loads(result.read_text())["rows"]] == ["one", "longer"]
    printed = capsys.readouterr().out
    assert build_table(result) in printed and "Not finished: hard-0." in printed


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on_where_it_stopped(tmp_path: Path):
    study, out, result = written(tmp_path / "s.yaml"), tmp_path / "out", tmp_path / "result.json"
    command = [study, "--out", out, "--result", result]
    with subprocess.Popen(script(*command), env=child_environment()) as process:
        while not (out / "one-0" / "row.json").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    kept = out / "one-0" / "row.json"
    before = kept.stat().st_mtime_ns
    done = ran(*command)
    assert done.returncode == 0, done.stderr
    assert kept.stat().st_mtime_ns == before
    found = json.loads(result.read_text())
    assert [row["arm"] for row in found["rows"]] == ["one", "hard", "longer"]
    assert {"commit", "environment", "n", "config"} <= found.keys()
    assert build_table(result) in done.stdout
    one, hard, longer = found["rows"]
    assert one["students"] == hard["students"], "the same settings and the same seed"
    assert longer["scores"] == [top1_of(longer["students"], "distilled, soft")]

    changed = ran(written(study, set=[*TINY["set"], "recover.lr=0.3"]), "--out", out)
    assert changed.returncode == 2
    assert "step 'recover' was made with recover.lr = 0.1, now it is 0.3" in changed.stderr
