"""`scdd-apps crossarch` on files of representations: rows, scores, stops, and what is refused."""

import csv
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from scdd.config.condense_pairs import PretrainConfig
from scdd.distilled import RepresentationDataset, read_header, write_pairs
from scdd.errors import FormatError
from scdd.progress import Bar
from scdd.stages import pretrain as stage
from scdd_apps.crossarch import training
from scdd_apps.crossarch.options import Options
from scdd_apps.crossarch.published import TABLE_OF_BOOST, table_of_boost
from scdd_apps.crossarch.rates import largest_stable_rate
from scdd_apps.crossarch.represented import DEFAULT_ARCHS, compared_pupils
from scdd_apps.files import find_inputs
from tests.apps.conftest import documented
from tests.apps.test_apps_commands import cells, refused
from tests.conftest import Outcome
from tests.distilled.random_sets import header_for, random_dense, random_set

Run = Callable[..., Outcome]

ARCH, OTHER = "convnet_krr_w32", "convnet_bn_w16"
ROWS = ["distilled", "random real", "random real, class labels", "no pre-training"]
TUNE = ("--finetune", "--set", "finetune.iterations=3", "--set", "finetune.batch=16")
NARROW = ("--arch", ARCH, "--epochs", "2", "--set", "probe.iterations=5")


@pytest.fixture
def lonely_file(tmp_path: Path) -> Path:
    """A dense file of four random pairs of 16 px that lies in no run."""
    path, parts = tmp_path / "alone" / "pairs.h5", random_dense(size=16, dim=5)
    path.parent.mkdir()
    write_pairs(path, header_for(parts), parts)
    return path


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def test_the_runs_own_network_gets_the_scores_of_the_run_and_all_rows_are_there(
    apps: Run, pair_run: Path, tmp_path: Path
):
    arguments = ["crossarch", pair_run / "distilled.h5", "--arch", ARCH, "--arch", OTHER]
    arguments += ["--seeds", "2", *TUNE, "--out", "out"]
    done = apps(*arguments)
    assert done.returncode == 0, done.stderr
    table = cells(done.stdout)
    assert [line[:2] for line in table] == [[a, arm] for a in (ARCH, OTHER) for arm in ROWS]
    assert "probed on 120 real training images, scored on 359 real" in done.stdout
    assert "3 steps of batch 16, sgd lr 0.01" in done.stdout
    found, theirs = read(tmp_path / "out"), read(pair_run)["rows"]
    assert len(found["rows"]) == 2 * 2 * 4 * 2 and found["tuning"] == "per-arch"
    ours = {
        (row["arm"], row["seed"]): row["top1"]
        for row in found["rows"]
        if (row["arch"], row["by"]) == (ARCH, "linear probe")
    }
    own = {(row["arm"], row["seed"]): row["top1"] for row in theirs if row["arm"] in ROWS}
    assert ours == own and len(ours) == 8

    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["top1"]) for line in lines] == [row["top1"] for row in found["rows"]]
    assert [line["by"] for line in lines[:2]] == ["linear probe", "fine-tuning"]
    assert lines[0]["learnt from"] == "distilled" and int(lines[0]["pairs"]) > 12
    assert len(found["means"]) == 16 and {mean["by"] for mean in found["means"]} == {
        "linear probe",
        "fine-tuning",
    }
    assert Image.open(tmp_path / "out" / "crossarch.png").width > 500
    assert "16 of 16 students were trained before" in apps(*arguments).stdout


def test_other_real_images_are_probed_on_and_the_classes_of_the_run_are_still_learnt(
    apps: Run, pair_run: Path, real_folder: Path, tmp_path: Path
):
    done = apps(
        *("crossarch", pair_run / "distilled.h5", *NARROW),
        *("--data", real_folder, "--out", "out"),
    )
    assert done.returncode == 0, done.stderr
    assert [line[1] for line in cells(done.stdout)] == ROWS
    assert all(0 <= float(line[-1]) <= 100 for line in cells(done.stdout))
    assert "12 real validation images, probed on 36 real training images" in done.stdout
    shown = cells(documented(tmp_path / "out"))
    assert [line[0] for line in shown] == [ARCH]
    assert shown[0][4:] == [line[-1] for line in cells(done.stdout)]


def test_a_file_without_a_run_is_compared_with_what_there_is(
    apps: Run, lonely_file: Path, real_folder: Path
):
    arguments = ["crossarch", lonely_file, *NARROW]
    refused(apps(*arguments), "pairs.h5", "no real images to probe", "--data DIR with train/")
    done = apps(*arguments, "--data", real_folder)
    assert done.returncode == 0, done.stderr
    first, random_real, labels, untrained = cells(done.stdout)
    assert float(first[-1]) >= 0 and float(untrained[-1]) >= 0
    assert random_real[-1] == labels[-1] == "n/a (no random_real.h5)"


def test_a_baseline_whose_classes_nobody_knows_is_learnt_by_its_representations_alone(
    apps: Run, pair_run: Path, real_folder: Path, tmp_path: Path
):
    for name in ("distilled.h5", "random_real.h5"):
        shutil.copy(pair_run / name, tmp_path / name)
    done = apps("crossarch", tmp_path / "distilled.h5", *NARROW, "--data", real_folder)
    assert done.returncode == 0, done.stderr
    scores = {line[1]: line[-1] for line in cells(done.stdout)}
    assert scores["random real, class labels"] == "n/a (no classes)"
    assert 0 <= float(scores["random real"]) <= 100


def test_stopped_anywhere_it_goes_on_and_no_epoch_is_trained_twice(
    apps: Run, lonely_file: Path, real_folder: Path, tmp_path: Path
):
    arguments = ["crossarch", lonely_file, "--data", real_folder, *NARROW, *TUNE, "--out"]
    whole = apps(*arguments, "whole")
    assert whole.returncode == 0, whole.stderr
    for steps in (1, 4):  # Two epochs, three steps of fine-tuning, then the untrained net.
        epochs, seen, advance, train = [], [], Bar.advance, stage._epoch
        with pytest.MonkeyPatch.context() as patch:

            def counted(self: Bar, units: int = 1, note: str = "", last: int = steps) -> None:
                advance(self, units, note)  # noqa: B023
                seen.append(note)  # noqa: B023
                if len(seen) == last + 1:  # noqa: B023  (what came before is kept)
                    signal.raise_signal(signal.SIGTERM)

            def noted(*args: Any) -> Any:
                epochs.append(args[-1])  # noqa: B023
                return train(*args)  # noqa: B023

            patch.setattr(training, "CHECKPOINT_MINUTES", 0)
            patch.setattr(stage, "_epoch", noted)
            patch.setattr(Bar, "advance", counted)
            stopped = apps(*arguments, f"out-{steps}")
            assert stopped.returncode == 143
            again = apps(*arguments, f"out-{steps}")
        assert again.returncode == 0, again.stderr
        assert cells(again.stdout) == cells(whole.stdout)
        assert len(epochs) <= 3  # The one that was not kept yet is the only one done again.
        rows = [read(tmp_path / out)["rows"] for out in ("whole", f"out-{steps}")]
        for row in [*rows[0], *rows[1]]:
            del row["seconds"]
        assert rows[0] == rows[1]
        left = {path.suffix for path in (tmp_path / f"out-{steps}" / "rows").iterdir()}
        assert left == {".json"}


def test_the_run_its_recipe_and_the_options_say_how_networks_learn(
    apps: Run, lonely_file: Path, real_folder: Path, tmp_path: Path
):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "{method: krr_st, squeeze: {objective: {name: barlow_twins}}, pretrain: {epochs: 7, "
        "batch: 3, lr: 0.03, finetune: {iterations: 2}, transfer: [{name: digits}]}}"
    )
    asked = ["crossarch", lonely_file, "--arch", ARCH, "--data", real_folder, "--out", "out"]
    asked += ["--recipe", recipe, "--set", "probe.iterations=2"]
    done = apps(*asked)
    assert "7 epochs of batch 3, sgd lr 0.03" in done.stdout and "fine-tun" not in done.stdout
    done = apps(*asked, "--epochs", "2", "--set", "lr=0.01", "--finetune")
    assert "2 epochs of batch 3, sgd lr 0.01" in done.stdout
    assert "fine-tuning: 2 steps of batch 256" in done.stdout
    training = read(tmp_path / "out")["rows"][0]["training"]
    expected = PretrainConfig(epochs=2, batch=3, lr=0.01).model_dump(mode="json")
    assert (training["momentum"], training["batch"]) == (expected["momentum"], 3)


def test_the_largest_stable_rate_is_where_sgd_begins_to_diverge():
    draw = torch.Generator().manual_seed(0)
    features, targets = (torch.randn(20, size, generator=draw) + 1 for size in (6, 3))
    limit = largest_stable_rate(features, 3, 0.9)
    losses = {}
    for share in (0.97, 1.03):
        head = torch.nn.Linear(6, 3)
        optimizer = torch.optim.SGD(head.parameters(), lr=share * limit, momentum=0.9)
        for _ in range(3000):
            loss = torch.nn.functional.mse_loss(head(features), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[share] = loss.item()
    assert losses[0.97] < 2 and not losses[1.03] < 1e6


def test_a_net_whose_head_would_diverge_learns_at_a_lower_rate_and_says_so(
    apps: Run, lonely_file: Path, real_folder: Path, tmp_path: Path
):
    arguments = ["crossarch", lonely_file, "--arch", "alexnet", "--epochs", "12"]
    arguments += ["--data", real_folder, "--set", "probe.iterations=2", "--out"]
    done = apps(*arguments, "tuned")
    assert done.returncode == 0, done.stderr
    assert "- alexnet: lr 0.00" in done.stdout and "would diverge at 0.1; net:" in done.stdout
    assert read(tmp_path / "tuned")["rows"][0]["training"]["lr"] < 0.05
    # And so it does, where one rate is for all.
    done = apps(*arguments, "shared", "--tuning", "shared")
    assert done.returncode == 1 and "alexnet: pretrain: the loss of alexnet is" in done.stderr


def test_what_the_user_says_of_the_rate_goes_before_any_tuning(
    lonely_file: Path, real_folder: Path
):
    inputs = find_inputs(lonely_file, real_folder, None, False, None, "crossarch", True)
    for overrides, rate in (((), 0.1), (("lr=0.2",), 0.2)):
        options = Options(["alexnet", ARCH], overrides=overrides)
        learners = compared_pupils(inputs, options, torch.device("cpu")).learners
        rates = {learner.arch: learner.cfg.lr for learner in learners}
        assert rates[ARCH] == rate and (rates["alexnet"] == rate) is bool(overrides)


def test_what_does_not_go_with_representations_is_one_sentence(
    apps: Run, lonely_file: Path, small_file: Path, real_folder: Path, tmp_path: Path
):
    asked = ["crossarch", lonely_file, "--data", real_folder]
    for more, said in (
        (["--labels", "soft"], ["--labels soft", "in place of labels"]),
        (["--tuning", "paper"], ["--tuning paper", "per-arch"]),
        (["--set", "finetune.iterations=3"], ["no effect without --finetune"]),
        (["--set", "arch=resnet8"], ["give it as the option --arch"]),
        (["--set", "transfer=[]"], ["no effect here"]),
        (["--set", "temperature=3"], ["unknown key 'temperature'"]),
        (["--arch", "resnet19"], ["resnet19", "resnet18"]),
        (["--recipe", "digits"], ["--recipe digits", "no section pretrain"]),
        (["--baseline", small_file], ["distilled.h5", "holds no representations"]),
        (["--baselines"], ["no random_real.h5 beside"]),
    ):
        refused(apps(*asked, *more), *said)
    (tmp_path / "val").mkdir()
    shutil.copytree(real_folder / "val", tmp_path / "only" / "val")
    refused(apps("crossarch", lonely_file, "--data", tmp_path / "only"), "has no train/")
    shutil.copytree(real_folder / "train", tmp_path / "only" / "train")
    shutil.rmtree(tmp_path / "only" / "train" / "ant")
    refused(apps("crossarch", lonely_file, "--data", tmp_path / "only"), "2 classes and val/ 3")
    refused(apps("crossarch", small_file, "--finetune"), "--finetune", "holds class labels")
    refused(apps("crossarch", small_file, "--recipe", "digits_boost"), "no section posttrain")
    assert not (lonely_file.parent / "crossarch").exists()


def test_apps_of_class_labels_name_the_one_that_serves_representations(
    apps: Run, lonely_file: Path
):
    refused(apps("prune", lonely_file), "holds representations", "scdd-apps crossarch FILE")
    with pytest.raises(FormatError, match="scdd-apps crossarch FILE"):
        find_inputs(lonely_file, None, None, False, None, "quantize")


def test_a_baseline_of_another_backbone_is_left_out_and_said(
    apps: Run, pair_run: Path, real_folder: Path, tmp_path: Path
):
    shutil.copy(pair_run / "distilled.h5", tmp_path / "distilled.h5")
    parts = random_dense(size=16, dim=5)
    write_pairs(tmp_path / "random_real.h5", header_for(parts, method="random"), parts)
    done = apps("crossarch", tmp_path / "distilled.h5", *NARROW, "--data", real_folder)
    assert done.returncode == 0 and "left out: " in done.stdout
    assert cells(done.stdout)[1][-1] == "n/a (no random_real.h5)"


def test_a_baseline_of_another_network_of_the_same_size_is_refused(pair_run: Path, tmp_path: Path):
    mine, theirs = pair_run / "random_real.h5", tmp_path / "random_real.h5"
    header = read_header(mine)
    about = {**(header.teacher or {}), "weights": "0" * 64}
    parts = RepresentationDataset.open(mine).parts
    write_pairs(theirs, replace(header, teacher=about), parts)
    with pytest.raises(
        FormatError, match=r"random_real\.h5: holds representations of another netw"
    ):
        find_inputs(
            pair_run / "distilled.h5", None, theirs, False, None, "crossarch", represented=True
        )


def test_the_published_numbers_of_boost_stand_beside_files_of_its_setting_alone():
    parts = random_set(size=32, side=16, vectors=20, width=5, count=10, dim=12)
    header = header_for(parts, dataset="cifar100", budget_n=100)
    found = table_of_boost(header)
    assert found is not None and tuple(TABLE_OF_BOOST) == DEFAULT_ARCHS
    text, record = found
    assert record["top1"]["convnet_krr"] == {
        "Random": 43.66,
        "DSA": 39.38,
        "IDM": 38.71,
        "DATM": 38.73,
        "KRR-ST": 47.0,
        "Boost": 52.41,
    }
    # What its text says: best on all nets but ResNet-18, where DATM is.
    best = {arch: max(row, key=row.__getitem__) for arch, row in record["top1"].items()}
    assert {arch for arch, name in best.items() if name != "Boost"} == {"resnet18"}
    assert "not measured here" in text and "52.41" in text
    for change in ({"dataset": "cifar10"}, {"budget_n": 200}):
        other = {"dataset": "cifar100", "budget_n": 100} | change
        assert table_of_boost(header_for(parts, **other)) is None


@pytest.mark.slow  # Six nets of full width.
def test_the_networks_of_boosts_table_learn_representations_at_32_px(
    apps: Run, real_folder: Path, tmp_path: Path
):
    parts = random_dense(size=32, dim=6)
    write_pairs(tmp_path / "pairs.h5", header_for(parts), parts)
    done = apps(
        *("crossarch", tmp_path / "pairs.h5", "--data", real_folder, "--epochs", "1"),
        *("--set", "probe.iterations=2", *TUNE[:1], "--set", "finetune.iterations=1"),
    )
    assert done.returncode == 0, done.stderr
    table = cells(done.stdout)
    assert [line[0] for line in table[::4]] == list(DEFAULT_ARCHS) and "error" not in done.stdout
    for line in table:
        if "n/a" not in line[-1]:
            assert all(0 <= float(cell) <= 100 for cell in line[-2:])
    with torch.no_grad():
        assert RepresentationDataset.open(tmp_path / "pairs.h5").target_dim == 6
