"""Images of one family with the targets of the other, from end to end.

SC-DD images get representations (scdd_pairs), images of Boost a teacher's logits (boost_labels).
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scdd.checkpoint import load_weights
from scdd.config.load import load_config
from scdd.datasets import load_dataset
from scdd.distilled import DistilledDataset, RepresentationDataset
from scdd.errors import FormatError
from scdd.estimate import estimate
from scdd.method_steps import steps_of
from scdd.models import recreate
from scdd.pipeline import distill
from scdd_apps.crossarch.comparison import compare
from scdd_apps.crossarch.options import Options
from scdd_apps.files import find_inputs
from tests import test_pair_methods, tiny_pair_run, tiny_run
from tests.conftest import FinishedRun, Outcome

Run = Callable[..., Outcome]

PRETRAIN = {
    "pretrain.arch": "convnet_krr_w32",
    "pretrain.epochs": 2,
    "pretrain.probe.iterations": 5,
}
OF_SCDD = ("dataset", "squeeze", "ipc", "recover")
PAIRS = ["represent", "baseline_pairs", "pretrain", "report"]
LABELS = {
    **{k: v for k, v in tiny_pair_run.SETTINGS.items() if not k.startswith("pretrain")},
    "probe.floor": 0,
    "relabel.views": 3,
    "relabel.group": 10,
    "posttrain.epochs": 3,
    "posttrain.batch": 10,
    "posttrain.seeds": 1,
}
LABEL_STEPS = [
    *("squeeze", "probe", "condense_pairs", "decode"),
    *("relabel", "baseline", "posttrain", "report"),
]


def pair_settings(**more: object) -> list[str]:
    """Those of the tiny run up to its images, and a short pre-training."""
    own = {k: v for k, v in tiny_run.SETTINGS.items() if k.split(".")[0] in OF_SCDD}
    found = own | PRETRAIN | {name.replace("__", "."): value for name, value in more.items()}
    return ["method=scdd_pairs", *(f"{key}={value}" for key, value in found.items())]


def label_settings(**more: object) -> list[str]:
    found = LABELS | {name.replace("__", "."): value for name, value in more.items()}
    return [f"{key}={value}" for key, value in found.items()]


def options(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def ran(outcome: Outcome) -> list[str]:
    assert outcome.returncode == 0, outcome.stderr
    return re.findall(r"^(\w+): running$", outcome.stdout, re.MULTILINE)


def network(path: Path) -> nn.Module:
    weights, about = load_weights(path)
    net = recreate(about)
    net.load_state_dict(weights)
    return net.eval()


def with_steps(run: Path, target: Path, *steps: str) -> Path:
    for step in steps:
        shutil.copytree(run / step, target / step)
    return target


def statistics(data: DistilledDataset | RepresentationDataset) -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    return mean[:, None, None], std[:, None, None]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, quiet_environment: None) -> Path:
    """A finished run of boost_labels: look, but change only copies."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("labelled") / "run"
    return distill(load_config("digits_boost_labels", label_settings()), out)


def test_recovered_images_get_the_representations_of_all_their_turns(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    """What another run of scdd has made is taken up: networks and images need no second making."""
    run = with_steps(finished_run.path, tmp_path / "run", "squeeze", "probe", "recover")
    done = warm_command("distill", "digits", "--out", run, *options(pair_settings()))
    assert ran(done) == PAIRS
    data = RepresentationDataset.open(run / "distilled.h5")
    images = tiny_run.arrays(run / "recover" / "images.h5")["images"]
    assert (data.parts.pixels.numpy() == images).all() and data.header.kind == "dense"
    assert data.header.method == "scdd_pairs" and data.num_views == 4 and len(data.parts) == 20

    backbone, (mean, std) = network(run / "squeeze" / "backbone.safetensors"), statistics(data)
    shown = (torch.from_numpy(images).float() / 255 - mean) / std
    with torch.no_grad():
        for view in range(4):
            turned = torch.rot90(shown, view, dims=(2, 3))
            torch.testing.assert_close(data.images(view), turned, rtol=0, atol=1e-6)
            torch.testing.assert_close(data.targets(view), backbone(turned), rtol=1e-5, atol=1e-5)

    # What the file holds is paid for, and buys as many real images as there is room for.
    stored = tiny_run.arrays(run / "distilled.h5")
    taken, each = stored["images"].size + stored["targets"].size, 3 * 16**2 + data.target_dim
    real = RepresentationDataset.open(run / "random_real.h5")
    assert data.header.budget_n == real.header.budget_n == len(real.parts) == -(-taken // each)
    assert f"20 pairs: {taken} numbers" in done.stdout

    rows = json.loads((run / "results.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == test_pair_methods.ROWS["krr_st"]
    assert [row["pairs"] for row in rows] == [80, len(real.parts), len(real.parts), 0]
    assert f"# digits: scdd_pairs, a budget of {len(real.parts)} images" in done.stdout

    verified = warm_command("inspect", run / "distilled.h5", "--verify")
    assert verified.returncode == 0 and "unit pixels, dense" in verified.stdout
    assert "every digest, shape and range is right" in verified.stdout
    card = tmp_path / "card"
    exported = warm_command(
        "export", run / "distilled.h5", "--format", "imagefolder", "--out", card
    )
    assert exported.returncode == 0 and np.load(card / "targets.npy").shape == (80, data.target_dim)
    refused = warm_command("evaluate", run / "distilled.h5", "--arch", "resnet8")
    assert refused.returncode == 2 and "representations" in refused.stderr
    redone = warm_command(
        *("distill", "digits", "--out", run, "--redo", "represent"),
        *options(pair_settings(represent__rotations="false")),
    )
    assert ran(redone) == PAIRS
    plain = RepresentationDataset.open(run / "distilled.h5")
    assert plain.header.budget_n == len(plain.parts) == 20 and plain.num_views == 1
    assert torch.equal(plain.targets(0), data.targets(0))


def test_images_learnt_without_classes_are_labelled_by_a_teacher_and_taught_to_students(
    labelled: Path, warm_command: Run
):
    cfg = load_config("digits_boost_labels", label_settings())
    assert [step.name for step in steps_of(cfg)] == LABEL_STEPS
    pairs = RepresentationDataset.open(labelled / "condense_pairs" / "distilled.h5")
    data = DistilledDataset.open(labelled / "distilled.h5")
    mean, std = statistics(pairs)
    levels = 255 * (pairs.images(0) * std + mean).numpy()
    assert (data.images.numpy() == np.clip(np.rint(levels), 0, 255)).all()
    beyond = np.abs(np.rint(levels) - np.clip(np.rint(levels), 0, 255))
    share, far = (beyond > 0).mean(), beyond[beyond > 0].mean()
    assert 0 < share < 1
    logged = [json.loads(line) for line in (labelled / "metrics.jsonl").read_text().splitlines()]
    (decoded,) = (line for line in logged if line["stage"] == "decode")
    assert decoded["cut_share"] == pytest.approx(share)
    assert decoded["cut_levels"] == pytest.approx(far)
    report = (labelled / "report.md").read_text()
    assert f"{100 * share:.2g} % of the values left 0 .. 255 and were cut, by {far:.2g}" in report
    assert f"# digits: boost_labels, {len(data)} images out of a budget of 12" in report
    assert "hard labels" not in report and "There is no hard label" in report
    assert re.search(r"^\| distilled +\| +start only ", report, re.MULTILINE)

    assert data.labels.tolist() == [-1] * len(data) and data.header.target_kind == "logits"
    assert data.header.ipc is None and data.header.budget_n == len(data) == len(pairs.parts)
    assert data.header.method == "boost_labels" and data.classes == tuple("0123456789")
    assert not (labelled / "distilled.h5").samefile(labelled / "condense_pairs" / "distilled.h5")

    # The baseline is as many real images with their classes: those that Boost started from.
    real = DistilledDataset.open(labelled / "random_real.h5")
    train = load_dataset(cfg.dataset).train
    pixels = train.read(torch.arange(len(train)))
    rows = [int((pixels == image).flatten(1).all(dim=1).nonzero()[0]) for image in real.images]
    assert len(set(rows)) == len(real) == len(data)
    assert real.labels.tolist() == train.labels[rows].tolist()
    scores = tiny_run.scores(labelled)
    assert [(row["arm"], row["labels"]) for row in scores] == [
        ("random real", "soft"),
        ("distilled", "soft"),
    ]

    file, teacher = labelled / "distilled.h5", labelled / "teacher.safetensors"
    shown = warm_command("inspect", file, "--verify", "--teacher", teacher)
    assert shown.returncode == 0, shown.stderr
    assert "every digest, shape and range is right" in shown.stdout and "reproduced" in shown.stdout
    other = warm_command(
        "inspect", file, "--teacher", labelled / "squeeze" / "backbone.safetensors"
    )
    assert other.returncode == 2 and "holds no classifier" in other.stderr


def test_pairs_are_taken_up_by_the_method_that_learns_them_and_the_other_way_round(
    labelled: Path, warm_command: Run, tmp_path: Path
):
    settings = [s for s in label_settings() if s.startswith(("dataset", "squeeze", "condense"))]
    boost = with_steps(labelled, tmp_path / "boost", "squeeze", "condense_pairs")
    command = ["distill", "digits_boost", "--out", boost, *options(settings)]
    assert ran(warm_command(*command, "--until", "condense_pairs")) == []
    assert (boost / "distilled.h5").samefile(boost / "condense_pairs" / "distilled.h5")
    labels = with_steps(boost, tmp_path / "labels", "squeeze", "condense_pairs")
    shutil.copytree(labelled / "probe", labels / "probe")
    command = ["distill", "digits_boost_labels", "--out", labels, *options(label_settings())]
    assert ran(warm_command(*command, "--until", "decode")) == ["decode"]
    assert not (labels / "distilled.h5").exists()


def test_raw_pairs_are_labelled_as_well(labelled: Path, warm_command: Run, tmp_path: Path):
    run = with_steps(labelled, tmp_path / "run", "squeeze", "probe")
    own = ["method=krr_st_labels", *label_settings(condense_pairs__steps=2, relabel__views=1)]
    command = ["distill", "digits_boost_labels", "--out", run, *options(own)]
    done = warm_command(*command, "--until", "relabel")
    assert ran(done) == ["condense_pairs", "decode", "relabel"]
    pairs = RepresentationDataset.open(run / "condense_pairs" / "distilled.h5")
    data = DistilledDataset.open(run / "distilled.h5")
    assert pairs.header.kind == "dense" and pairs.num_views == 1 and len(data) == 12
    assert data.header.method == "krr_st_labels" and data.has_soft_labels
    assert torch.equal(data.images, pairs.pixels(0))
    assert "12 images; " in done.stdout and " % of the values left 0 .. 255" in done.stdout


def test_what_has_soft_labels_alone_serves_every_command_that_asks_for_no_other(
    labelled: Path, warm_command: Run, tmp_path: Path
):
    file = labelled / "distilled.h5"
    scored = warm_command("evaluate", file, "--arch", "resnet8")
    assert scored.returncode == 0, scored.stderr
    rows = {row["arm"]: row["top1"] for row in tiny_run.scores(labelled)}
    table = {line.split("|")[1].strip(): line for line in scored.stdout.splitlines() if "|" in line}
    assert f" {rows['distilled']:.1f} " in table["distilled.h5"]
    assert f" {rows['random real']:.1f} " in table["random_real.h5 (random real)"]
    for wrong, remedy in (
        (["--labels", "hard"], "train with --labels soft"),
        (["--set", "hard_weight=0.1"], "use --set hard_weight=0"),
    ):
        refused = warm_command("evaluate", file, "--arch", "resnet8", *wrong)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
        assert "holds images of no class, so it cannot teach any" in refused.stderr
        assert remedy in refused.stderr

    folder = tmp_path / "folder"
    exported = warm_command("export", file, "--format", "imagefolder", "--out", folder)
    assert exported.returncode == 0, exported.stderr
    assert len(list(folder.glob("train/*/*.png"))) == len(DistilledDataset.open(file))
    assert "without a class (label -1)" in (folder / "README.md").read_text()

    out = tmp_path / "crossarch"
    compare(
        find_inputs(file, None, None, True, out, "crossarch"),
        Options(["resnet8"], tuning="shared", epochs=2),
        torch.device("cpu"),
    )
    crossed = json.loads((out / "results.json").read_text())
    assert {row["arm"] for row in crossed["rows"]} == {"distilled", "random real"}
    with pytest.raises(FormatError, match="images of no class"):
        compare(
            find_inputs(file, None, None, False, out, "crossarch"),
            Options(["resnet8"], tuning="shared", epochs=2, labels=["soft", "hard"]),
            torch.device("cpu"),
        )


@pytest.mark.parametrize("bridge", ["scdd_pairs", "boost_labels"])
def test_a_killed_bridge_goes_on_and_ends_as_if_it_had_not_been(
    bridge: str, warm_command: Run, finished_run: FinishedRun, labelled: Path, tmp_path: Path
):
    """Killed before every change of the folder in the steps that make its file."""
    if bridge == "scdd_pairs":
        start, made = finished_run.path, ("squeeze", "probe", "recover")
        command = ["distill", "digits", *options(pair_settings()), "--until", "baseline_pairs"]
        whole = with_steps(start, tmp_path / "whole", *made)
        assert warm_command(*command, "--out", whole).returncode == 0
    else:
        whole, start, made = labelled, labelled, ("squeeze", "probe", "condense_pairs")
        command = ["distill", "digits_boost_labels", *options(label_settings())]
        command += ["--until", "relabel"]
    killed = with_steps(start, tmp_path / "killed", *made)
    survived: list[str] = []
    while True:
        outcome = warm_command(*command, "--out", killed, root=killed, survive=survived)
        if outcome.killed_at is None:
            break
        survived.append(outcome.killed_at)
    assert outcome.returncode == 0, outcome.stderr
    files = ("distilled.h5", "random_real.h5") if bridge == "scdd_pairs" else ("distilled.h5",)
    own = "represent/distilled.h5" if bridge == "scdd_pairs" else "decode/images.h5"
    for met in (own, *files):
        assert any(met in place for place in survived), survived
    for name in files:
        ours, theirs = tiny_run.arrays(killed / name), tiny_run.arrays(whole / name)
        assert ours.keys() == theirs.keys()
        assert all((ours[key] == theirs[key]).all() for key in ours)


@pytest.mark.parametrize(
    ("preset", "change", "said"),
    [
        ("digits_boost_labels", "posttrain.labels=[hard]", "images have no class, but posttrain."),
        ("digits_boost_labels", "posttrain.hard_weight=1", "set it to 0"),
        ("digits_boost_labels", "relabel.codec=hard", "stores no other labels; choose another"),
        ("digits_boost_labels", "ipc=3", "method boost_labels has no use for"),
        ("digits_boost_labels", "condense_pairs.budget_n=500", "holds only 120 images"),
        ("digits_boost_labels", "condense_pairs.pairs=1", "makes one image, on which no student"),
        ("digits_boost_labels", "posttrain.batch=5", "cannot hold a group of 10 images"),
        ("digits_scdd_pairs", "ipc=10", "100 images with 4 targets each take the room of 124 real"),
        ("digits_scdd_pairs", "relabel.views=3", "method scdd_pairs has no use for"),
        ("digits_scdd_pairs", "pretrain.arch=convnet_kr", "convnet_krr"),
        ("digits_scdd_pairs", "recover.layer_weights={99: [1, 1]}", "there is no layer 99"),
    ],
)
def test_what_a_bridge_cannot_do_is_refused_before_anything_is_trained(
    preset: str, change: str, said: str, warm_command: Run, tmp_path: Path
):
    own = label_settings() if preset == "digits_boost_labels" else pair_settings()[1:]
    own = [setting for setting in own if "queue" not in setting]
    outcome = warm_command("distill", preset, "--out", tmp_path / "run", *options([*own, change]))
    assert outcome.returncode == 2 and outcome.stderr.count("\n") == 1, outcome.stderr
    assert said in outcome.stderr
    assert not (tmp_path / "run" / "squeeze" / "backbone.safetensors").exists()


def test_the_estimate_knows_the_steps_of_bridges(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("scdd.estimate.PROBE_SECONDS", 1e-3)
    cpu = torch.device("cpu")
    text = estimate(load_config("digits", pair_settings()), cpu)
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line[:2] == "| "}
    assert rows.keys() >= {"squeeze", "probe", "recover", *PAIRS}
    # 20 images in four turns; in two epochs these and twice the 25 real ones.
    assert " 80 x resnet8 " in rows["represent"] and " 260 x convnet" in text
    assert "ipc 2" in text and "posttrain" not in text
    cfg = load_config("digits_boost_labels", label_settings())
    text = estimate(cfg, cpu)
    assert [step for step in LABEL_STEPS if f"| {step}" in text] == LABEL_STEPS
    assert "a budget of 12 images" in text and "pretrain" not in text
