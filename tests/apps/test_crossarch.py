"""`scdd-apps crossarch`: how nets are tuned, what is written, and what is only quoted."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scdd.config.posttrain import PosttrainConfig
from scdd.distilled import Header, read_header
from scdd.errors import ConfigError
from scdd_apps.crossarch import published
from scdd_apps.crossarch.figure import accuracy_over_parameters
from scdd_apps.crossarch.published import TABLE_8, is_setting_of_table_8
from scdd_apps.crossarch.recipes import NEEDS, UNNORMALISED, recipe_for
from scdd_apps.crossarch.results import Mean
from scdd_apps.files import Inputs
from tests.apps.conftest import MEAN, STD, write_file
from tests.apps.test_apps_commands import SHORT, cells
from tests.conftest import ROOT, Outcome

Run = Callable[..., Outcome]
ALL = ("resnet8", "squeezenet1_0", "mobilenet_v3_large", "shufflenet_v2_x0_5", "vit_tiny")


def inputs_of(file: Path, training: PosttrainConfig | None) -> Inputs:
    return Inputs(file, read_header(file), None, None, training, file.parent / "crossarch")


@pytest.fixture(scope="module")
def larger_file(quiet_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file at a size at which every net can be built."""
    return write_file(tmp_path_factory.mktemp("larger") / "distilled.h5", size=16)


# Tuning


def test_shared_tuning_is_the_runs_own_for_every_net(larger_file: Path):
    own = PosttrainConfig(epochs=600, batch=6, optimizer="sgd", lr=0.2, scale_loss=True)
    for arch in ALL:
        recipe = recipe_for(inputs_of(larger_file, own), arch, "shared", None, ())
        assert recipe.cfg == own.model_copy(update={"arch": arch}) and not recipe.why


def test_shared_tuning_outside_a_run_is_that_of_table_16(larger_file: Path):
    cfg = recipe_for(inputs_of(larger_file, None), "vit_tiny", "shared", None, ()).cfg
    assert (cfg.optimizer, cfg.lr, cfg.weight_decay) == ("adamw", 0.001, 0.01)
    assert (cfg.batch, cfg.epochs, cfg.lr_schedule, cfg.stretch) == (64, 300, "cosine", 1.0)


def test_per_arch_tuning_says_why_it_leaves_the_runs_own(larger_file: Path):
    own = PosttrainConfig(epochs=600, batch=6, optimizer="sgd", lr=0.2)
    recipes = {
        arch: recipe_for(inputs_of(larger_file, own), arch, "per-arch", None, ()) for arch in ALL
    }
    same = recipes.pop("resnet8")
    assert (same.cfg.optimizer, same.cfg.lr, same.cfg.epochs, same.why) == ("sgd", 0.2, 100, "")
    for arch, (cfg, why) in recipes.items():
        # A rate of SGD would be no rate for these, nor theirs for SGD.
        assert cfg.optimizer == "adamw" and cfg.lr <= 0.004 and cfg.epochs >= 200, arch
        assert why, arch
    assert recipes["vit_tiny"].cfg.warmup_epochs == recipes["squeezenet1_0"].cfg.warmup_epochs == 5
    assert "BatchNorm" in recipes["squeezenet1_0"].why


@pytest.mark.parametrize("tuning", ["shared", "per-arch"])
def test_what_the_user_says_goes_before_any_tuning(tuning: str, larger_file: Path):
    changes = ("lr=0.03", "optimizer=sgd")
    recipe = recipe_for(inputs_of(larger_file, None), "vit_tiny", tuning, 7, changes)
    assert (recipe.cfg.lr, recipe.cfg.optimizer, recipe.cfg.epochs) == (0.03, "sgd", 7)


def test_only_what_no_size_can_build_is_an_unknown_architecture(tmp_path: Path):
    inputs = inputs_of(write_file(tmp_path / "prime.h5", size=17), None)
    assert recipe_for(inputs, "vit_tiny", "per-arch", None, ()).cfg.arch == "vit_tiny"
    with pytest.raises(ConfigError, match="vit_tinny"):
        recipe_for(inputs, "vit_tinny", "per-arch", None, ())


def test_each_tuning_has_rows_of_its_own_and_is_recorded(
    apps: Run, small_file: Path, tmp_path: Path
):
    arguments = ["crossarch", small_file, "--arch", "resnet8", "--out", "out", *SHORT]
    for tuning in ("shared", "per-arch"):
        done = apps(*arguments, "--tuning", tuning)
        assert done.returncode == 0 and f"Tuning {tuning}" in done.stdout
        assert "trained before" not in done.stdout
        assert json.loads((tmp_path / "out" / "results.json").read_text())["tuning"] == tuning
    assert "1 of 1 students were trained before" in apps(*arguments).stdout  # per-arch by default
    assert len(list((tmp_path / "out" / "rows").iterdir())) == 2


# What is written


def test_every_output_has_the_same_numbers(
    apps: Run, larger_file: Path, real_folder: Path, tmp_path: Path
):
    done = apps(
        *("crossarch", larger_file, "--arch", "resnet8", "--arch", "resnet14", "--seeds", "3"),
        *("--labels", "soft", "--labels", "hard", "--data", real_folder, "--out", "out", *SHORT),
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    with (out / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    record = json.loads((out / "results.json").read_text())
    assert len(lines) == len(record["rows"]) == 12
    for line, row in zip(lines, record["rows"], strict=True):
        assert (line["architecture"], line["seed"]) == (row["arch"], str(row["seed"]))
        assert (line["images"], line["labels"]) == ("distilled", row["labels"])
        assert float(line["top1"]) == row["top1"] and float(line["lr"]) == row["training"]["lr"]
        assert line["tuning"] == "per-arch" and line["error"] == ""
    assert len(record["means"]) == 4
    for mean in record["means"]:
        scores = [
            float(line["top1"])
            for line in lines
            if (line["architecture"], line["labels"]) == (mean["arch"], mean["labels"])
        ]
        assert mean["seeds"] == len(scores) == 3
        assert np.isclose(mean["top1"], np.mean(scores))
        assert np.isclose(mean["sd"], np.std(scores, ddof=1))
    report = (out / "report.md").read_text()
    first = record["means"][0]
    assert cells(report)[0][4] == f"{first['top1']:.1f} +- {first['sd']:.1f}"
    assert "![top-1 over parameters](crossarch.png)" in report
    assert Image.open(out / "crossarch.png").width > 500
    assert "results.json, results.csv, crossarch.png" in done.stdout
    assert "## Published" not in report and "published" not in record


def test_without_scores_there_are_rows_but_no_plot(apps: Run, small_file: Path, tmp_path: Path):
    done = apps("crossarch", small_file, "--arch", "resnet8", "--out", "out", *SHORT)
    assert done.returncode == 0 and cells(done.stdout)[0][-1] == "n/a (no --data)"
    assert not (tmp_path / "out" / "crossarch.png").exists()
    assert "crossarch.png" not in (tmp_path / "out" / "report.md").read_text()
    (line,) = csv.DictReader((tmp_path / "out" / "results.csv").open())
    assert line["top1"] == "" and int(line["parameters"]) > 0


def test_an_architecture_that_fails_has_its_reason_in_every_output(
    apps: Run, real_folder: Path, tmp_path: Path
):
    file = write_file(tmp_path / "prime.h5", size=17)
    chosen = ["--arch", "vit_tiny", "--arch", "resnet8", "--seeds", "2", "--data", real_folder]
    done = apps("crossarch", file, *chosen, "--out", "out", *SHORT)
    assert done.returncode == 0 and "error: vit_tiny: " in done.stdout
    with (tmp_path / "out" / "results.csv").open(newline="") as opened:
        lines = list(csv.DictReader(opened))
    assert len(lines) == 4
    for line in lines:
        assert ("17 px" in line["error"]) is (line["architecture"] == "vit_tiny")
        assert (line["top1"] == "") is (line["architecture"] == "vit_tiny")
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(record["errors"]) == ["vit_tiny"] and len(record["rows"]) == 2


def test_the_plot_has_a_logarithmic_series_for_each_kind_of_images_and_labels():
    means = [
        Mean("small", "distilled", "soft", 3, 60.0, 2.0, 1_000_000),
        Mean("small", "random real", "soft", 3, 50.0, 1.0, 1_000_000),
        Mean("large", "distilled", "soft", 3, 70.0, 4.0, 9_000_000),
        Mean("unscored", "distilled", "soft", 3, None, 0.0, 5_000_000),
    ]
    (axes,) = accuracy_over_parameters(means, "insects").axes
    assert axes.get_xscale() == "log" and axes.get_title() == "insects"
    distilled, random_real = axes.containers
    assert distilled.get_label() == "distilled, soft labels"
    assert random_real.get_label() == "random real, soft labels"
    assert distilled.lines[0].get_xydata().tolist() == [[1e6, 60.0], [9e6, 70.0]]
    bars = [segment[:, 1].tolist() for segment in distilled.lines[2][0].get_segments()]
    assert bars == [[58.0, 62.0], [66.0, 74.0]]
    assert {text.get_text() for text in axes.texts} == {"small", "large"}


# What is only quoted


def test_the_published_table_says_what_the_papers_text_says_of_it():
    assert round(TABLE_8["vit_tiny"].scdd - TABLE_8["vit_tiny"].sre2l, 2) == 38.72
    assert max(TABLE_8, key=lambda arch: TABLE_8[arch].scdd) == "regnet_x_8gf"
    assert all(row.scdd > row.sre2l for row in TABLE_8.values()) and len(TABLE_8) == 8


def header(classes: tuple[str, ...], image_size: int = 224, ipc: int = 50) -> Header:
    return Header(
        method="scdd",
        recipe="custom",
        dataset="x",
        target_kind="none",
        class_names=classes,
        mean=MEAN,
        std=STD,
        image_size=image_size,
        ipc=ipc,
        seed=0,
    )


def test_the_published_table_goes_with_its_own_setting_alone():
    imagenet = tuple(f"n{number:08d}" for number in range(1000))
    assert is_setting_of_table_8(header(imagenet))
    assert not is_setting_of_table_8(header(imagenet, ipc=10))
    assert not is_setting_of_table_8(header(imagenet, image_size=64))
    assert not is_setting_of_table_8(header(imagenet[:100]))
    assert not is_setting_of_table_8(header(tuple(f"product {n}" for n in range(1000))))


def test_published_numbers_stand_apart_from_ours(
    apps: Run, real_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in (("CLASSES", 3), ("IMAGE_SIZE", 8), ("IPC", 4)):
        monkeypatch.setattr(published, name, value)
    file = write_file(tmp_path / "wordnet.h5", classes=("n00000001", "n00000002", "n00000003"))
    done = apps("crossarch", file, "--arch", "resnet8", "--out", "out", *SHORT)
    ours, quoted = done.stdout.split("## Published")
    assert "SRe2L" not in ours and "53.13" not in ours
    assert "not measured here" in quoted and "resnet8 " not in quoted
    assert [line[0] for line in cells(quoted)] == list(TABLE_8)
    assert "## Published" in (tmp_path / "out" / "report.md").read_text()
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["published"]["top1"]["resnet18"] == {"sre2l": 46.8, "scdd": 53.13}
    assert len(record["rows"]) == 1


def test_the_documented_rows_are_those_of_the_code():
    text = (ROOT / "docs" / "crossarch.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "optimizer=" in line]
    assert len(lines) == len(NEEDS) + 1
    for arch, need in [*NEEDS.items(), ("any without BatchNorm", UNNORMALISED)]:
        (line,) = (line for line in lines if arch in line)
        assert f"x {need.passes} " in line and " ".join(need.settings) in line and need.why in line
