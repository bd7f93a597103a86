"""`scdd-apps prune` as people meet it: bad input in one sentence, tables, files, reruns."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scdd.checkpoint import load_weights, save_weights
from scdd.config.posttrain import PosttrainConfig
from scdd.models import create_model
from scdd_apps import load_pruned
from scdd_apps.prune import place
from tests.apps.conftest import CLASSES, documented, write_file
from tests.apps.test_apps_commands import SHORT, cells, refused
from tests.conftest import Command, Outcome
from tests.pickled_code import Code

Run = Callable[..., Outcome]

ROWS = [("slimming", "0"), ("slimming", "0.5"), ("random", "0.5"), ("scratch", "0.5")]


def trained(
    path: Path,
    arch: str = "resnet8",
    classes: int = 3,
    size: int = 8,
    names: tuple[str, ...] | None = None,
) -> Path:
    """Write the weights of a network as a teacher of a run has them."""
    torch.manual_seed(5)
    about = {"arch": arch, "stem_spec": None, "num_classes": classes, "image_size": size}
    if names:
        about["classes"] = names
    save_weights(path, create_model(arch, classes, size).state_dict(), about)
    return path


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


# Bad input


@pytest.mark.parametrize("ratio", ["-0.1", "1", "1.5", "nan"])
def test_a_ratio_outside_0_to_1_is_refused(ratio: str, apps: Run, small_file: Path):
    refused(apps("prune", small_file, "--ratio", ratio), f"--ratio {float(ratio):g}", "[0, 1)")


@pytest.mark.parametrize("pull", ["-1", "nan", "inf"])
def test_a_pull_without_meaning_is_refused(pull: str, apps: Run, small_file: Path):
    refused(apps("prune", small_file, "--pull", pull), "--pull")


def test_a_ratio_out_of_reach_fails_before_anything_is_trained(
    apps: Run, small_file: Path, tmp_path: Path
):
    outcome = apps("prune", small_file, "--ratio", "0.97", "--out", "out")
    refused(outcome, "0.97 was asked for", "is the most")
    rounded = apps("prune", small_file, "--ratio", "0.5", "--round-to", "512", "--out", "out")
    refused(rounded, "0.5 was asked for", "multiples of 512")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arch", ["squeezenet1_0", "vit_tiny"])
def test_a_network_without_batchnorm_cannot_be_slimmed(arch: str, apps: Run, tmp_path: Path):
    file = write_file(tmp_path / "distilled.h5", size=16)
    outcome = apps("prune", file, "--arch", arch, "--criterion", "slimming")
    refused(outcome, arch, "no BatchNorm", "--criterion magnitude")


def test_shufflenet_is_refused_with_the_reason(apps: Run, small_file: Path):
    outcome = apps("prune", small_file, "--arch", "shufflenet_v2_x0_5")
    refused(outcome, "shuffles channels", "vgg11, resnet18")


def test_an_architecture_that_is_not_prunable_yet_is_said_to_be_so(apps: Run, small_file: Path):
    refused(apps("prune", small_file, "--arch", "resnet10w16"), "cannot be pruned yet")


def test_sparsity_training_wants_sgd(apps: Run, small_file: Path):
    refused(apps("prune", small_file, "--set", "optimizer=adamw"), "sgd", "pull")


def test_options_that_do_not_go_together_are_refused(apps: Run, small_file: Path, tmp_path: Path):
    weights = trained(tmp_path / "mine.safetensors")
    for arguments, said in (
        (["--variant", "b"], ["--variant b", "synth, checkpoint, oneshot"]),
        (["--variant", "oneshot"], ["--variant oneshot", "--checkpoint FILE"]),
        (["--checkpoint", weights], ["starts from new weights", "--variant checkpoint or oneshot"]),
        (["--criterion", "taylor"], ["--criterion taylor", "slimming or magnitude"]),
        (["--criterion", "magnitude", "--pull", "2"], ["--pull 2", "no effect", "magnitude"]),
        (["--set", "epochs=3"], ["--set epochs=3", "option --epochs"]),
        (["--baseline", small_file], ["--baseline", "holds the same as"]),
        (["--iterations", "3", "--epochs", "2"], ["--iterations 3", "2 epochs"]),
        (
            ["--variant", "checkpoint", "--checkpoint", weights, "--criterion", "magnitude"],
            ["--variant checkpoint", "--variant oneshot"],
        ),
    ):
        refused(apps("prune", small_file, "--arch", "resnet8", *arguments), *said)


def test_a_checkpoint_that_does_not_fit_is_refused(apps: Run, small_file: Path, tmp_path: Path):
    def given(path: Path, *said: str) -> None:
        chosen = ["--variant", "oneshot", "--arch", "resnet8", "--checkpoint", path]
        refused(apps("prune", small_file, *chosen, "--out", "out"), path.name, *said)

    given(tmp_path / "gone.safetensors", "cannot be read")
    given(trained(tmp_path / "other.safetensors", arch="resnet14"), "resnet14", "--arch resnet14")
    given(
        trained(tmp_path / "classes.safetensors", classes=7),
        "tells 7 classes apart, and the distilled file 3",
    )
    turned = trained(tmp_path / "turned.safetensors", names=CLASSES[::-1])
    given(turned, "other names, or another order", "the same classes")
    given(trained(tmp_path / "size.safetensors", size=16), "images of 16 px", "have 8 px")
    text = tmp_path / "text.pt"
    text.write_text("no weights")
    given(text, "no weights file")

    plain = tmp_path / "plain.pt"
    torch.save(create_model("resnet8", 7, 8).state_dict(), plain)
    given(plain, "classifier tells 7 classes apart, and the distilled file 3")
    torch.save(create_model("resnet14", 3, 8).state_dict(), plain)
    given(plain, "has no place in the network", "resnet8 of 3 classes")
    torch.save(create_model("resnet8x2", 3, 8).state_dict(), plain)
    given(plain, "has shape", "resnet8 of 3 classes")
    broken = create_model("resnet8", 3, 8).state_dict()
    broken["conv1.weight"] = broken["conv1.weight"] * float("nan")
    torch.save(broken, plain)
    given(plain, "'conv1.weight' has values that are not finite")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_holds_code_is_refused_and_not_run(
    apps: Run, small_file: Path, tmp_path: Path
):
    path, proof = tmp_path / "mine.pt", tmp_path / "ran"
    torch.save({"state_dict": create_model("resnet8", 3, 8).state_dict(), "x": Code(proof)}, path)
    chosen = ["--variant", "oneshot", "--arch", "resnet8", "--checkpoint", path]
    refused(apps("prune", small_file, *chosen), "mine.pt", "holds pickled code", "never runs")
    assert not proof.exists()


# What comes out


def test_new_weights_get_the_steps_and_the_rate_of_everything_else_together(
    apps: Run, small_file: Path, monkeypatch: pytest.MonkeyPatch
):
    trained, train_student = [], place.train_student

    def watched(cfg: PosttrainConfig, *rest: Any, **more: Any) -> None:
        trained.append((cfg.epochs, cfg.lr))
        train_student(cfg, *rest, **more)

    monkeypatch.setattr(place, "train_student", watched)
    chosen = ["--arch", "resnet8", "--ratio", "0.5", "--out", "out"]
    done = apps("prune", small_file, *chosen, *SHORT)
    assert done.returncode == 0, done.stderr
    sparsity, control, slimming, random, scratch = trained
    assert control == slimming == random and control[1] < sparsity[1]
    assert scratch == (sparsity[0] + slimming[0], sparsity[1])


def test_prune_shows_every_stage_and_writes_networks_that_load(
    apps: Run, small_file: Path, real_folder: Path, tmp_path: Path
):
    arguments = ["prune", small_file, "--arch", "resnet8", "--data", real_folder, "--out", "out"]
    first = apps(*arguments, *SHORT, "--ratio", "0.5")
    assert first.returncode == 0, first.stderr
    table = cells(first.stdout)[:4]
    assert [(line[1], line[2]) for line in table] == ROWS
    assert [line[3] for line in table] == ["0.000"] + ["0.500"] * 3
    control, pruned, random, scratch = table
    for line in (control, pruned, random):
        assert len(line) == 10 and all(0 <= float(cell) <= 100 for cell in line[6:])
    assert control[6] == pruned[6] == random[6] == control[7]
    assert scratch[6:9] == ["-"] * 3 and 0 <= float(scratch[9]) <= 100
    assert pruned[4:6] == random[4:6] == scratch[4:6]
    assert "pull of 1.5" in first.stdout and "lambda" in first.stdout

    written = cells(documented(tmp_path / "out"))
    assert [[line[1], *line[4:]] for line in written[:4]] == [
        [line[1], *line[6:]] for line in table
    ]

    result = results(tmp_path / "out")
    rows = [row for row in result["rows"] if row["ratio"] == 0.5]
    assert len({tuple(row["widths"].values()) for row in rows}) == 1
    about = [load_weights(tmp_path / "out" / row["weights"])[1] for row in rows]
    slimming, other, new = (facts["pruning_history"] for facts in about)
    assert [cut[0] for cut in slimming] == [cut[0] for cut in other] and slimming != other
    assert new == slimming
    row = rows[0]
    assert sum(row["widths"].values()) == 112 and sum(row["histogram"]) == 224
    assert list(row["top1"]) == ["sparse", "pruned", "recalibrated", "fine-tuned"]
    for each in rows:
        model = load_pruned(tmp_path / "out" / each["weights"])
        assert sum(p.numel() for p in model.parameters()) == row["parameters"]
        assert model(torch.zeros(2, 3, 8, 8)).shape == (2, len(CLASSES))
    assert row["macs"] < 0.6 * row["macs_before"]

    costs = result["costs"]
    assert [cost["ratio"] for cost in costs] == [0, 0.5]
    for cost in costs:
        assert 0 < cost["latency_ms"]["cpu"]["p50"] <= cost["latency_ms"]["cpu"]["p90"]
    assert costs[1]["bytes"] == (tmp_path / "out" / row["weights"]).stat().st_size
    report = (tmp_path / "out" / "report.md").read_text()
    assert "|BatchNorm scale| before pruning" in report and "(prune.png)" in report
    assert "1 CPU thread" in report and "8x8 image" in report
    assert (tmp_path / "out" / "prune.png").read_bytes().startswith(b"\x89PNG")

    kept = list((tmp_path / "out").rglob("*.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in kept}
    again = apps(*arguments, *SHORT, "--ratio", "0.5", "--ratio", "0.3")
    assert "4 rows were finished before" in again.stdout
    # The sparse network is taken from before: two fine-tunings of two epochs, and all four anew.
    assert "8 epochs = 8 steps of resnet8 to train" in again.stdout
    assert [line[2] for line in cells(again.stdout)[:7]] == ["0"] + ["0.3"] * 3 + ["0.5"] * 3
    assert cells(again.stdout)[4:7] == table[1:]
    assert {path: path.stat().st_mtime_ns for path in kept} == before


def test_prune_works_without_real_images_as_a_process_of_its_own(
    apps_command: Command, tmp_path: Path
):
    file = write_file(tmp_path / "runs" / "mine" / "distilled.h5")
    write_file(file.with_name("random_real.h5"), seed=7, method="random")
    done = apps_command("prune", "--arch", "resnet8", "--baselines", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "runs/mine/distilled.h5 is the newest" in done.stdout
    table = cells(done.stdout)[:8]
    assert [line[0] for line in table] == ["distilled"] * 4 + ["random real"] * 4
    assert {cell for line in table for cell in line[6:]} == {"n/a (no --data)", "-"}
    assert len(list((file.parent / "prune").glob("resnet8-*.safetensors"))) == 8
    assert not (file.parent / "prune" / "prune.png").exists()


def test_a_trained_network_is_pruned_and_teaches_what_is_left(
    apps: Run, real_folder: Path, tmp_path: Path
):
    # No soft labels are stored, so none but the network's own can be learned.
    file = write_file(tmp_path / "images.h5", labelled=False)
    state = create_model("resnet8", 3, 8).state_dict()
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, "mine.pt")
    chosen = ["--arch", "resnet8", "--checkpoint", "mine.pt", "--data", real_folder]
    slimmed = apps("prune", file, "--variant", "checkpoint", *chosen, "--out", "b", *SHORT)
    assert slimmed.returncode == 0, slimmed.stderr
    rows = results(tmp_path / "b")["rows"]
    stages = ["unpruned", "sparse", "pruned", "recalibrated", "fine-tuned"]
    assert list(rows[1]["top1"]) == stages and list(rows[3]["top1"]) == stages[-1:]
    assert "soft labels of the unpruned network, live" in slimmed.stdout

    oneshot = apps("prune", file, "--variant", "oneshot", *chosen, "--out", "c", *SHORT)
    assert oneshot.returncode == 0, oneshot.stderr
    again = results(tmp_path / "c")["rows"]
    assert [row["channels"] for row in again] == ["magnitude", "magnitude", "random", "scratch"]
    assert again[1]["top1"]["unpruned"] == rows[1]["top1"]["unpruned"] == again[0]["top1"]["pruned"]
    assert "sparse" not in again[1]["top1"]
    # Every layer loses the same share.
    assert list(again[1]["widths"].values()) == [8, 8, 16, 16, 32, 32]
    # At ratio 0 nothing was cut and nothing is left to learn but BatchNorm statistics.
    assert (
        load_pruned(tmp_path / "c" / again[0]["weights"])(torch.zeros(1, 3, 8, 8)).isfinite().all()
    )


def test_steps_multiples_and_statistics_left_alone_are_taken_into_account(
    apps: Run, small_file: Path, real_folder: Path, tmp_path: Path
):
    arguments = ["prune", small_file, "--arch", "resnet8", "--data", real_folder, "--epochs", "4"]
    done = apps(
        *arguments, "--set", "batch=12", "--iterations", "2", "--round-to", "8", "--out", "a"
    )
    assert done.returncode == 0, done.stderr
    row = results(tmp_path / "a")["rows"][1]
    assert len(row["cuts"]) == 2 and sum(sum(cut.values()) for cut in row["cuts"]) == 112
    assert sum(row["cuts"][0].values()) == 56
    assert all(width % 8 == 0 for width in row["widths"].values())
    assert "in 2 steps" in done.stdout and "multiples of 8" in done.stdout
    kept = apps(*arguments, "--set", "batch=12", "--no-bn-recal", "--out", "b")
    recalibrated = apps(*arguments, "--set", "batch=12", "--out", "c")
    assert "without recalibrated BatchNorm statistics" in kept.stdout
    assert "with recalibrated BatchNorm statistics" in recalibrated.stdout
    mine, theirs = (results(tmp_path / out)["rows"][1] for out in "bc")
    for stage in ("pruned", "recalibrated"):
        assert mine["top1"][stage] == theirs["top1"][stage]
    # Statistics have no part in training: they differ after it, and no weight does.
    ours, others = (
        load_weights(tmp_path / out / row["weights"])[0]
        for out, row in (("b", mine), ("c", theirs))
    )
    differ = {name for name in ours if not torch.equal(ours[name], others[name])}
    assert differ == {name for name in ours if "running" in name or "tracked" in name}


@pytest.mark.parametrize("arch", ["squeezenet1_0", "vit_tiny"])
def test_without_batchnorm_filters_are_ranked_and_nothing_is_recalibrated(
    arch: str, apps: Run, real_folder: Path, tmp_path: Path
):
    file = write_file(tmp_path / "distilled.h5", size=16, ipc=2)
    done = apps("prune", file, "--arch", arch, "--data", real_folder, "--epochs", "1", "--out", "o")
    assert done.returncode == 0, done.stderr
    rows = results(tmp_path / "o")["rows"]
    assert rows[1]["channels"] == "magnitude" and abs(rows[1]["achieved"] - 0.5) < 0.01
    assert list(rows[1]["top1"]) == ["unpruned", "pruned", "fine-tuned"]
    assert "adamw" in done.stdout and "BatchNorm" not in (tmp_path / "o" / "report.md").read_text()


def test_too_little_and_too_much_sparsity_are_warned_of(
    apps: Run, small_file: Path, tmp_path: Path
):
    arguments = ["prune", small_file, "--arch", "resnet8", "--set", "batch=12", "--out", "out"]
    weak = apps(*arguments, "--epochs", "1", "--pull", "0.1")
    assert "pull of 0.1 cannot bring a scale from 1 to 0" in weak.stdout
    assert "0 % of the scales came below 0.01, which is less than half" in weak.stdout
    arguments += ["--ratio", "0", "--set", "lr=0.02"]
    strong = apps(*arguments, "--epochs", "100", "--pull", "3")
    assert "hardly anything of the network is left" in strong.stdout
    assert "less than half" not in strong.stdout


def test_a_wild_learning_rate_ends_in_one_sentence(apps: Run, small_file: Path):
    outcome = apps(
        *("prune", small_file, "--arch", "resnet8", "--out", "out", "--epochs", "4"),
        *("--set", "lr=1e30", "--set", "batch=12"),
    )
    assert outcome.returncode == 1
    assert "loss of resnet8 is nan" in outcome.stderr.splitlines()[-1]


@pytest.mark.parametrize("arch", ["vgg11", "resnet18", "mobilenet_v3_large", "regnet_x_400mf"])
@pytest.mark.slow
def test_larger_architectures_go_all_the_way(
    arch: str, apps: Run, real_folder: Path, tmp_path: Path
):
    file = write_file(tmp_path / "distilled.h5", size=16)
    done = apps("prune", file, "--arch", arch, "--data", real_folder, *SHORT, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert abs(results(tmp_path / "out")["rows"][1]["achieved"] - 0.5) < 0.02
