"""`scdd-apps export`: ONNX Runtime gives the logits of PyTorch, and the file says what it is."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torchvision.transforms.functional import normalize

from scdd.checkpoint import load_weights, save_weights
from scdd.errors import RunError
from scdd.models import list_models
from scdd_apps import onnx_graphs
from scdd_apps.export import network_file
from scdd_apps.networks import Network
from scdd_apps.onnx_graphs import to_onnx
from tests.apps.conftest import CLASSES, MEAN, STD, write_file
from tests.apps.trained_networks import save_network, save_pruned_network
from tests.conftest import ROOT, Outcome, child_environment

Run = Callable[..., Outcome]

QUICK = ("resnet8", "squeezenet1_0")
TOO_LARGE = "resnet50w5"


def refused(outcome: Outcome, *said: str, code: int = 2) -> None:
    """Check that a command ended with one sentence with these words on standard error."""
    assert outcome.returncode == code, outcome.stderr
    lines = outcome.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), outcome.stderr
    for words in said:
        assert words in lines[0], lines[0]


def assert_gives_the_logits_of(model: nn.Module, path: Path, size: int) -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    draw = torch.Generator().manual_seed(5)
    for count in (1, 3, 20):
        pixels = torch.rand(count, 3, size, size, generator=draw)
        (found,) = session.run(None, {"images": pixels.numpy()})
        with torch.no_grad():
            wanted = model(normalize(pixels, list(MEAN), list(STD))).numpy()
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
        assert np.abs(wanted).max() > 1e-3


@pytest.mark.parametrize(
    "arch",
    [
        *QUICK,
        *(
            pytest.param(arch, marks=pytest.mark.slow)
            for arch in list_models()
            if arch not in (*QUICK, TOO_LARGE)
        ),
    ],
)
def test_a_network_gives_the_same_logits_in_onnx_runtime(arch: str, apps: Run, tmp_path: Path):
    size = 8 if arch == "resnet8" else 16
    model = save_network(tmp_path / "teacher.safetensors", arch, size)
    done = apps("export", "teacher.safetensors", "--format", "onnx")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and done.stdout.startswith(f"teacher.onnx: {arch}, ")
    assert_gives_the_logits_of(model, tmp_path / "teacher.onnx", size)


def test_weights_that_no_onnx_file_can_hold_are_refused_before_the_work(
    apps: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(onnx_graphs, "LARGEST", 100_000)
    save_network(tmp_path / "teacher.safetensors")
    outcome = apps("export", "teacher.safetensors")
    refused(outcome, "teacher.safetensors: its weights take", "less than 100.0 kB", "smaller")
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.safetensors"]


@pytest.mark.parametrize("arch", ["vgg11", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_a_pruned_network_keeps_its_widths(arch: str, apps: Run, tmp_path: Path):
    model = save_pruned_network(tmp_path / "pruned.safetensors", arch)
    done = apps("export", "pruned.safetensors", "--out", "made/small.onnx")
    assert done.returncode == 0, done.stderr
    assert_gives_the_logits_of(model, tmp_path / "made" / "small.onnx", 8)
    graph = onnx.load(tmp_path / "made" / "small.onnx")
    held = sum(np.prod(tensor.dims) for tensor in graph.graph.initializer)
    assert held < 1.01 * sum(p.numel() for p in model.parameters())
    assert {entry.key: entry.value for entry in graph.metadata_props}["trained_on"] == "a1b2"


def test_a_backbone_gives_its_features(apps: Run, tmp_path: Path):
    model = save_network(tmp_path / "backbone.safetensors", classes=())
    done = apps("export", "backbone.safetensors")
    assert done.returncode == 0 and "output features an image" in done.stdout, done.stderr
    assert_gives_the_logits_of(model, tmp_path / "backbone.onnx", 8)
    assert [out.name for out in onnx.load("backbone.onnx").graph.output] == ["features"]


def test_the_file_says_what_it_is_and_nothing_of_the_machine(apps: Run, tmp_path: Path):
    path = tmp_path / "teacher.safetensors"
    save_network(path)
    done = apps("export", path, "--out", "net.onnx")
    assert re.search(r"differ by at most \d\.\de-\d\d of the largest output", done.stdout)
    content = (tmp_path / "net.onnx").read_bytes()
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["arch"] == "resnet8" and json.loads(facts["classes"]) == list(CLASSES)
    assert json.loads(facts["mean"]) == list(MEAN) and json.loads(facts["std"]) == list(STD)
    assert facts["image_size"] == "8" and "[0, 1]; normalised inside" in facts["input"]
    assert facts["weights"] == hashlib.sha256(path.read_bytes()).hexdigest()
    (images,) = model.graph.input
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim][1:] == [3, 8, 8]
    for private in (b"site-packages", b".py", str(tmp_path).encode(), b"Traceback"):
        assert private not in content


@pytest.mark.parametrize("shift", [0.1, np.nan])
def test_a_graph_that_is_off_is_an_error_and_leaves_no_file(
    shift: float, apps: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    faithful = network_file.to_onnx

    def off(network: Network) -> onnx.ModelProto:
        model = faithful(network)
        bias = next(t for t in model.graph.initializer if list(t.dims) == [len(CLASSES)])
        values = onnx.numpy_helper.to_array(bias)
        bias.CopyFrom(onnx.numpy_helper.from_array(values + np.float32(shift), bias.name))
        return model

    monkeypatch.setattr(network_file, "to_onnx", off)
    save_network(tmp_path / "teacher.safetensors")
    outcome = apps("export", "teacher.safetensors")
    refused(outcome, "other outputs than PyTorch", "nothing was written", code=1)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.safetensors"]


def test_weights_that_are_of_no_use_are_refused_as_such(apps: Run, tmp_path: Path):
    path = tmp_path / "teacher.safetensors"
    for factor, said in (
        (np.nan, "conv1.weight' has values that are not finite"),
        (1e38, "outputs"),
    ):
        save_network(path)
        weights, about = load_weights(path)
        weights["conv1.weight"] = weights["conv1.weight"] * factor
        save_weights(path, weights, about)
        refused(apps("export", path), "teacher.safetensors", said, "not finite")
        assert [each.name for each in tmp_path.iterdir()] == ["teacher.safetensors"]


def test_a_network_that_cannot_be_traced_is_said_to_be_so(tmp_path: Path):
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    (tmp_path / "weights").touch()
    network = Network(tmp_path / "weights", Branching(), "branching", 8, CLASSES, MEAN, STD, None)
    with pytest.raises(RunError, match="branching: PyTorch cannot write it as ONNX") as failure:
        to_onnx(network)
    assert "\n" not in str(failure.value) and len(str(failure.value)) < 300


def test_bad_input_is_refused_in_one_sentence(apps: Run, tmp_path: Path):
    save_network(tmp_path / "teacher.safetensors")
    refused(apps("export", "teacher.safetensors", "--format", "tflite"), "tflite", "choose onnx")
    refused(apps("export", "gone.safetensors"), "gone.safetensors", "teacher.safetensors of a run")
    (tmp_path / "text").write_text("not a network")
    refused(apps("export", "text"), "text: cannot be read as safetensors")
    whole = (tmp_path / "teacher.safetensors").read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    refused(apps("export", "half"), "half: cannot be read as safetensors")
    write_file(tmp_path / "distilled.h5")
    refused(apps("export", "distilled.h5"), "distilled.h5: cannot be read as safetensors")
    weights = {"weight": torch.zeros(2)}
    save_weights(tmp_path / "classifier", weights, {})
    refused(apps("export", "classifier"), "which network it is for (no 'mean')")
    about = {"mean": MEAN, "std": STD, "num_classes": 0, "image_size": 8}
    save_weights(tmp_path / "odd", weights, {**about, "arch": "resnet9"})
    refused(apps("export", "odd"), "odd: ", "resnet9")
    save_weights(tmp_path / "other", weights, {**about, "arch": "resnet8"})
    refused(apps("export", "other"), "other: weight 'conv1.weight' is missing")
    save_weights(tmp_path / "short", weights, {**about, "arch": "resnet8", "mean": [0.5]})
    refused(apps("export", "short"), "short: ", "which network")
    for there in ("there.onnx", "folder"):
        (tmp_path / there).mkdir()
        refused(apps("export", "teacher.safetensors", "--out", there), there, "another --out")
    refused(
        apps("export", "teacher.safetensors", "--out", "text/a.onnx"), "text: ", "another --out"
    )
    assert not list(tmp_path.rglob("*.tmp")) and not (tmp_path / "teacher.onnx").exists()


def test_another_file_of_the_same_name_is_left_alone(apps: Run, tmp_path: Path):
    save_network(tmp_path / "teacher.safetensors")
    (tmp_path / "teacher.onnx").write_text("mine")
    refused(apps("export", "teacher.safetensors"), "teacher.onnx: is there already")
    assert (tmp_path / "teacher.onnx").read_text() == "mine"


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_library_is_said_before_any_work(
    missing: str, apps: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, missing, None)
    for command in ("export", "quantize"):
        refused(apps(command, "gone"), f"{missing} is not installed; pip install 'scdd[export]'")


@pytest.mark.parametrize("command", ["export", "quantize"])
def test_help_answers_without_torch_or_onnx(command: str, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "scdd_apps", command, "--help"],
        env=child_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(re.findall(r"^import time:.*\|\s+(\S+)$", done.stderr, re.MULTILINE))
    assert "scdd_apps.cli" in imported and "teacher.safetensors" in done.stdout
    assert {"torch", "onnx", "onnxruntime", "h5py"} & imported == set()


def test_no_other_module_imports_onnx():
    found = {
        str(path.relative_to(ROOT / "apps"))
        for folder in ("scdd", "apps")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"^ *(import|from) onnx", path.read_text(), re.MULTILINE)
    }
    ours = ["onnx_graphs.py", "quantize/comparison.py", "quantize/int8.py"]
    assert found == {f"scdd_apps/{name}" for name in ours}
