"""KRR-ST and Boost from end to end: the commands, the files, the rows, kills and refusals."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from scdd.checkpoint import load_weights
from scdd.config.condense_pairs import PretrainConfig
from scdd.config.load import load_config
from scdd.datasets import load_dataset
from scdd.distilled import RepresentationDataset
from scdd.errors import ConfigError
from scdd.estimate import estimate
from scdd.models import recreate
from scdd.stages.pretrain import new_network, pretrain
from tests.conftest import Outcome
from tests.tiny_pair_run import settings
from tests.tiny_run import write_image_folder

Run = Callable[..., Outcome]

STEPS = ["squeeze", "condense_pairs", "baseline_pairs", "pretrain", "report"]
ROWS = {
    "krr_st": ["distilled", "random real", "random real, class labels", "no pre-training"],
    "boost": [
        *("distilled", "distilled, targets stored"),
        *("random real", "random real, class labels", "no pre-training"),
    ],
}


def distill(command: Run, method: str, out: Path, **more: object) -> Outcome:
    return command("distill", f"digits_{method}", "--out", out, *settings(**more))


def ran(outcome: Outcome) -> list[str]:
    assert outcome.returncode == 0, outcome.stderr
    return re.findall(r"^(\w+): running$", outcome.stdout, re.MULTILINE)


@pytest.mark.parametrize("method", ["krr_st", "boost"])
def test_pairs_are_made_billed_learnt_from_and_compared(
    method: str, warm_command: Run, tmp_path: Path
):
    run = tmp_path / "run"
    done = distill(warm_command, method, run)
    assert ran(done) == STEPS
    result = json.loads((run / "results.json").read_text())
    assert {(row["arm"], row["seed"]) for row in result["rows"]} == {
        (arm, seed) for arm in ROWS[method] for seed in (0, 1)
    }
    table = [line.split("|")[1].strip() for line in done.stdout.splitlines() if " +- " in line]
    assert table == ROWS[method]
    assert ("targets that the approximation" in done.stdout) is (method == "boost")
    assert "12 raw images with targets" in done.stdout and "barlow_twins, 1 epoch." in done.stdout

    shown = warm_command("inspect", run / "distilled.h5", "--verify")
    assert shown.returncode == 0 and "every digest, shape and range is right" in shown.stdout
    data = RepresentationDataset.open(run / "distilled.h5")
    assert data.num_views == (4 if method == "boost" else 1)
    assert data.header.kind == ("factored" if method == "boost" else "dense")
    refused = warm_command("evaluate", run / "distilled.h5", "--arch", "resnet8")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "representations" in refused.stderr and "scdd-apps crossarch FILE" in refused.stderr

    # The baseline is real images as the backbone sees them.
    real = RepresentationDataset.open(run / "random_real.h5")
    weights, about = load_weights(run / "squeeze" / "backbone.safetensors")
    backbone = recreate(about)
    backbone.load_state_dict(weights)
    with torch.no_grad():
        wanted = backbone.eval()(real.images(0))
    torch.testing.assert_close(real.targets(0), wanted, rtol=1e-4, atol=1e-5)
    train = load_dataset(load_config("digits", ["dataset.train_per_class=12"]).dataset).train
    pixels = (train.read(torch.arange(len(train))).float() / 255).flatten(1)
    mean, std = torch.tensor(real.mean), torch.tensor(real.std)
    shown_pixels = real.images(0) * std[:, None, None] + mean[:, None, None]
    nearest = (shown_pixels.flatten(1)[:, None] - pixels).abs().amax(dim=2)
    assert len(real.parts) == 12 and nearest.min(dim=1).values.max() < 1e-3
    assert len(set(nearest.argmin(dim=1).tolist())) == 12


def test_a_network_that_learns_pairs_gets_nearer_to_its_targets(warm_command: Run, tmp_path: Path):
    """What the row says was trained was trained: the loss on the stored pairs falls."""
    run = tmp_path / "run"
    assert ran(distill(warm_command, "krr_st", run, pretrain__epochs=1, pretrain__seeds=1)) == STEPS
    data = RepresentationDataset.open(run / "distilled.h5")
    images, targets = data.images(0), data.targets(0)
    cfg = PretrainConfig(arch="convnet_krr_w32", epochs=40, batch=12, lr=0.05)
    net = pretrain(cfg, images, targets, 0, torch.device("cpu"))
    before = new_network("convnet_krr_w32", 16, targets.shape[1], 0).eval()
    with torch.no_grad():
        assert F.mse_loss(net(images), targets) < 0.5 * F.mse_loss(before(images), targets)


def test_a_run_with_more_tasks_says_which_they_are_and_knows_them_wherever_they_lie(
    warm_command: Run, tmp_path: Path
):
    run, images = tmp_path / "run", write_image_folder(tmp_path / "here" / "insects")

    def command(place: Path, **more: object) -> Outcome:
        task = json.dumps([{"name": "image_folder", "root": str(place), "image_size": 16}])
        tuned = json.dumps({"iterations": 2, "batch": 16})
        few = {"pretrain__seeds": 1, "pretrain__epochs": 1, "pretrain__finetune": tuned}
        return distill(warm_command, "krr_st", run, **few, pretrain__transfer=task, **more)

    # Refused before the squeeze, and one sentence.
    refused = command(tmp_path / "gone")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "pretrain.transfer.0.root: " in refused.stderr and "does not exist" in refused.stderr
    assert not (run / "squeeze" / "backbone.safetensors").exists()

    done = command(images)
    assert ran(done) == STEPS
    report = (run / "report.md").read_text()
    assert str(tmp_path) not in report
    assert "## digits: the images that were distilled" in report and "## insects: tra" in report
    assert "Dataset image_folder: 3 classes, 36 real training images, 12 real val" in report
    assert report.count("| images seen | linear probe | fine-tuning |") == 2
    assert "that is training from scratch" in report
    assert "2 steps of batch 16, sgd lr 0.01, cosine" in report
    result = json.loads((run / "results.json").read_text())
    assert str(tmp_path) not in json.dumps(result)
    assert [task["name"] for task in result["tasks"]] == ["digits", "insects"]
    assert len(result["rows"]) == len(ROWS["krr_st"]) * 2 * 2

    # Moved, they are the same images; others are not.
    moved = images.parent.rename(tmp_path / "there") / "insects"
    assert ran(command(moved)) == []
    (moved / "train" / "ant" / "000.png").unlink()
    refused = command(moved)
    assert refused.returncode == 2 and "from another pretrain.transfer.0 than" in refused.stderr
    shutil.rmtree(moved)
    gone = command(moved)
    assert gone.returncode == 0 and "the real images are gone" in gone.stdout


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(warm_command: Run, tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    few = settings(condense_pairs__steps=2, pretrain__seeds=1, pretrain__epochs=1)
    few += ["--set", "checkpoint_minutes=0", "--until", "pretrain"]
    assert ran(warm_command("distill", "digits_boost", "--out", whole, *few)) == STEPS[:-1]
    shutil.copytree(whole / "squeeze", killed / "squeeze")
    survived: list[str] = []
    while True:
        outcome = warm_command(
            "distill", "digits_boost", "--out", killed, *few, root=killed, survive=survived
        )
        if outcome.killed_at is None:
            break
        survived.append(outcome.killed_at)
    assert outcome.returncode == 0, outcome.stderr
    for met in ("condense_pairs.checkpoint", "distilled.h5", "random_real.h5", "results.json"):
        assert any(met in place for place in survived), survived
    for name in ("distilled.h5", "random_real.h5"):
        ours, theirs = (RepresentationDataset.open(run / name) for run in (killed, whole))
        for view in range(ours.num_views):
            assert torch.equal(ours.images(view), theirs.images(view))
            assert torch.equal(ours.targets(view), theirs.targets(view))
    rows = [json.loads((run / "results.json").read_text())["rows"] for run in (killed, whole)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("method", "change", "said"),
    [
        ("boost", "condense_pairs.budget_n=500", "training set holds only 120 images"),
        ("boost", "condense_pairs.bases.images=193", "bases.images is 193, more than"),
        ("boost", "condense_pairs.pairs=119", "which take"),
        ("krr_st", "condense_pairs.parameterisation=bases", "choose method boost"),
        ("krr_st", "ipc=5", "method krr_st has no use for"),
        ("krr_st", "relabel.views=5", "method krr_st has no use for"),
        ("krr_st", "condense_pairs.pool.arch=convnet_kr", "convnet_krr"),
        ("boost", "pretrain.transfer=[{name: digits, image_size: 8}]", "transfer.0.image_size"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    method: str, change: str, said: str, warm_command: Run, tmp_path: Path
):
    out = tmp_path / "run"
    outcome = warm_command(
        "distill", f"digits_{method}", "--out", out, *settings(), "--set", change
    )
    assert outcome.returncode == 2 and outcome.stderr.count("\n") == 1, outcome.stderr
    assert said in outcome.stderr
    assert not (out / "squeeze" / "backbone.safetensors").exists()


def test_the_estimate_knows_the_steps_of_pairs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("scdd.estimate.PROBE_SECONDS", 1e-3)
    cfg = load_config("digits_boost", settings()[1::2])
    text = estimate(cfg, torch.device("cpu"))
    assert "a budget of 12 images" in text
    assert [step for step in STEPS if f"| {step}" in text] == STEPS
    # Ten networks are tried on the digits and on 30 more images of train, then 3 x 16 fine-tuned.
    more = ["pretrain.transfer=[{image_size: 16, train_per_class: 3}]"]
    more += ["pretrain.finetune={iterations: 3, batch: 16}"]
    text = estimate(load_config("digits_boost", [*settings()[1::2], *more]), torch.device("cpu"))
    _, probed, tuned = re.findall(r"\| pretrain +\| +([\d.e+]+) x convnet_krr_w32", text)
    assert float(probed) == pytest.approx(10 * (120 + 359 + 30 + 359), rel=0.01)
    assert float(tuned) == 10 * 2 * 3 * 16


def test_a_preset_of_classes_becomes_one_of_pairs(capsys: pytest.CaptureFixture[str]):
    cfg = load_config("digits", ["method=boost"])
    assert cfg.condense_pairs is not None and cfg.recover is None
    assert "relabel" not in cfg.model_dump() and "condense_pairs" in cfg.model_dump()
    assert "left out" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no use for"):
        load_config("digits_boost", ["probe.crops=2"])
