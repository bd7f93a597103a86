"""`scdd-apps quantize`: ranges and weights against numpy, and the command from end to end."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, numpy_helper
from sklearn.metrics import accuracy_score
from torch import nn

from scdd.distilled import DistilledFile
from scdd_apps.networks import load_network
from scdd_apps.onnx_graphs import to_onnx
from scdd_apps.quantize.calibration import noise
from scdd_apps.quantize.int8 import METHODS, prepared, quantised
from scdd_apps.quantize.measures import labelled_images, qualities
from scdd_apps.report_cost import latencies
from tests.apps.conftest import CLASSES, MEAN, STD, documented, write_file
from tests.apps.trained_networks import save_network
from tests.conftest import Outcome

Run = Callable[..., Outcome]


def refused(outcome: Outcome, *said: str, code: int = 2) -> None:
    """Check that a command ended with one sentence with these words on standard error."""
    assert outcome.returncode == code, outcome.stderr
    lines = outcome.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), outcome.stderr
    for words in said:
        assert words in lines[0], lines[0]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "teacher.safetensors"
    save_network(path)
    return path


@pytest.fixture(scope="module")
def ready(teacher: Path) -> ModelProto:
    return prepared(to_onnx(load_network(teacher)))


def with_outlier() -> torch.Tensor:
    """200 images of 8 px, dark but for one pixel: 1 of 38,400 values."""
    draw = torch.Generator().manual_seed(3)
    images = torch.randint(0, 150, (200, 3, 8, 8), generator=draw, dtype=torch.uint8)
    images[17, 0, 4, 4] = 255
    return images


def constants(model: ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def input_range(model: ModelProto) -> tuple[float, float]:
    """The values that the quantised input can hold, from its step and zero point."""
    (divided,) = (node.output[0] for node in model.graph.node if node.op_type == "Div")
    (node,) = (n for n in model.graph.node if divided in n.input)
    assert node.op_type == "QuantizeLinear"
    step, zero = (constants(model)[name] for name in node.input[1:])
    assert zero.dtype == np.uint8
    return -float(zero) * float(step), (255 - float(zero)) * float(step)


# Ranges and weights


def test_minmax_spans_what_the_images_span_and_percentile_cuts_an_outlier(ready: ModelProto):
    images = with_outlier()
    values = (images.numpy() / 255 - MEAN[0]) / STD[0]
    low, high = input_range(quantised(ready, images, "minmax"))
    step = (values.max() - values.min()) / 255
    assert abs(low - values.min()) < step and abs(high - values.max()) < step
    cut = input_range(quantised(ready, images, "percentile"))
    # 0.005 % on either side, up to a bin of the histogram.
    expected, width = np.quantile(values, 1 - 0.00005), 2 * values.max() / 2048
    assert abs(cut[0] - values.min()) < width + step and abs(cut[1] - expected) < width + step
    assert cut[1] < 0.5 * high


def test_entropy_has_more_than_one_range_to_choose_from(ready: ModelProto):
    images = with_outlier()[:64]
    whole, chosen = (
        {name: value for name, value in constants(quantised(ready, images, method)).items()}
        for method in ("minmax", "entropy")
    )
    steps = [name for name, value in whole.items() if name.endswith("_scale") and not value.ndim]
    ratios = np.array([chosen[name] / whole[name] for name in steps])
    assert len(ratios) > 9 and ratios.max() < 1.01
    assert (ratios < 0.9).sum() >= 3


def test_every_weight_is_within_half_a_step_of_the_one_that_batchnorm_is_folded_into(
    teacher: Path, ready: ModelProto
):
    made = quantised(ready, with_outlier()[:40], "minmax")
    held = constants(made)
    found = {
        name.removesuffix("_quantized"): (values, held[name.replace("_quantized", "_scale")])
        for name, values in held.items()
        if values.dtype == np.int8 and values.ndim == 4
    }
    network = load_network(teacher).model
    wanted = list(folded(network))
    assert len(found) == len(wanted) == 9
    for weights in wanted:
        own = [
            (values, steps.reshape(-1, 1, 1, 1))
            for values, steps in found.values()
            if values.shape == weights.shape and steps.shape == weights.shape[:1]
        ]
        errors = [np.abs(values * steps - weights) / steps for values, steps in own]
        best = min(range(len(own)), key=lambda number: errors[number].max())
        assert errors[best].max() < 0.5 + 1e-3
        # The largest weight of each channel takes the last of the steps.
        assert (np.abs(own[best][0].astype(int)).max((1, 2, 3)) == 127).all()


def folded(network: nn.Module) -> list[np.ndarray]:
    """Weights of the convolutions, each times scale / sqrt(variance + eps) of the norm behind."""
    modules = dict(network.named_modules())
    found = []
    for name, module in modules.items():
        if isinstance(module, nn.Conv2d):
            norm = modules[name.replace("conv", "bn").replace("ample.0", "ample.1")]
            assert isinstance(norm, nn.BatchNorm2d)
            factor = norm.weight / (norm.running_var + norm.eps).sqrt()
            found.append((module.weight * factor.view(-1, 1, 1, 1)).detach().numpy())
    return found


@pytest.mark.parametrize("method", METHODS)
def test_logits_stay_close_and_the_file_is_a_third(method: str, ready: ModelProto):
    images = torch.randint(0, 256, (64, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    images = images.byte()
    made = quantised(ready, images, method)
    onnx.checker.check_model(made, full_check=True)
    pixels = images[:32].numpy().astype(np.float32) / 255
    before, after = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"images": pixels})[0]
        for m in (ready, made)
    )
    assert 0 < np.linalg.norm(after - before) < 0.15 * np.linalg.norm(before)
    assert made.ByteSize() < ready.ByteSize() / 3
    assert {"Conv", "Gemm"} <= {node.op_type for node in ready.graph.node}


# Measures


def test_accuracy_and_agreement_are_those_of_sklearn_and_numpy():
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (250, 3, 2, 2), generator=draw).byte()
    labels = torch.randint(0, 12, (250,), generator=draw)
    noise_of = torch.randn(12, 12, generator=draw)
    runs = [lambda x: x.flatten(1), lambda x: x.flatten(1) @ (torch.eye(12) + 0.3 * noise_of)]

    class Source:
        def read(self, index: torch.Tensor) -> torch.Tensor:
            return images[index]

    source = Source()
    source.labels = labels  # type: ignore[attr-defined]
    found = qualities(runs, labelled_images(source, images))  # type: ignore[arg-type]
    logits = [run(images.float() / 255).double().numpy() for run in runs]
    for quality, own in zip(found, logits, strict=True):
        assert quality.top1 == pytest.approx(100 * accuracy_score(labels, own.argmax(1)))
        agreed = accuracy_score(logits[0].argmax(1), own.argmax(1))
        assert quality.agreement == pytest.approx(100 * agreed)
        error = np.linalg.norm(own - logits[0]) / np.linalg.norm(logits[0])
        assert quality.logit_error == pytest.approx(100 * error)
    assert found[0].logit_error == 0 and 20 < found[1].agreement < 100
    unlabelled = qualities(runs, labelled_images(None, images))
    assert [quality.top1 for quality in unlabelled] == [None, None]
    assert [q.agreement for q in unlabelled] == [q.agreement for q in found]


def test_all_networks_are_timed_in_turn():
    calls: list[int] = []

    def run(number: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def called(pixels: torch.Tensor) -> torch.Tensor:
            assert pixels.shape == (1, 3, 4, 4) and pixels.max() <= 1
            calls.append(number)
            return pixels

        return called

    times = latencies([run(0), run(1), run(2)], torch.rand(1, 3, 4, 4))
    assert calls == [0, 1, 2] * (len(calls) // 3) and len(calls) >= 300
    assert all(0 <= each.p50 <= each.p90 for each in times)


def test_noise_has_the_statistics_of_the_real_images_and_no_neighbours_that_agree():
    drawn = noise((400, 3, 8, 8), (0.4, 0.5, 0.6), (0.05, 0.1, 0.08)).double() / 255
    assert torch.allclose(drawn.mean((0, 2, 3)), torch.tensor([0.4, 0.5, 0.6]).double(), atol=0.004)
    assert torch.allclose(
        drawn.std((0, 2, 3)), torch.tensor([0.05, 0.1, 0.08]).double(), atol=0.004
    )
    beside = np.corrcoef(drawn[..., 1:].flatten(), drawn[..., :-1].flatten())
    own = drawn - drawn.mean((0, 2, 3), keepdim=True)
    beside = np.corrcoef(own[..., 1:].flatten(), own[..., :-1].flatten())[0, 1]
    assert abs(beside) < 0.02


# The command


def test_quantize_compares_calibrations_and_writes_one_network(
    apps: Run, teacher: Path, real_folder: Path, tmp_path: Path
):
    file = write_file(tmp_path / "runs" / "mine" / "distilled.h5")
    write_file(file.with_name("random_real.h5"), seed=7, ipc=3, method="random")
    done = apps("quantize", teacher, "--baselines", "--data", real_folder, "--method", "minmax")
    assert done.returncode == 0, done.stderr
    assert "runs/mine/distilled.h5 is the newest" in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")][2:]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    arms = [line[:3] for line in table]
    assert arms[:2] == [["fp32 PyTorch", "-", "-"], ["fp32 ONNX", "-", "-"]]
    assert arms[2:] == [
        ["int8", arm, method] for arm in ("distilled", "random real", "noise") for method in METHODS
    ]
    assert all(0 <= float(cell) <= 100 for line in table for cell in line[6:8])
    # The baseline has 9 images, so all rows have that many.
    for words in ("Calibrated on 9 images a row", "12 real validation images", "1 thread"):
        assert words in done.stdout

    out = file.parent / "quantize"
    result = json.loads((out / "results.json").read_text())
    with DistilledFile(file) as opened:
        assert result["digest"] == opened.header.digest
    rows = result["rows"]
    assert rows[1]["agreement"] == 100 and rows[1]["logit_error"] < 0.01
    assert rows[0]["bytes"] == teacher.stat().st_size
    (kept,) = (row for row in rows if "file" in row)
    assert (kept["calibration"], kept["method"]) == ("distilled", "minmax")
    assert kept["bytes"] < rows[1]["bytes"] / 2
    assert (out / "report.md").read_text().count("\n| int8") == 9
    assert documented(out).count("\n| int8") == 9

    session = onnxruntime.InferenceSession(out / "teacher-int8.onnx")
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["calibration"] == "minmax, distilled images"
    assert facts["calibrated_on"] == result["digest"]
    assert json.loads(facts["classes"]) == list(CLASSES) and facts["arch"] == "resnet8"
    pixels = np.random.default_rng(0).random((5, 3, 8, 8), dtype=np.float32)
    assert session.run(None, {"images": pixels})[0].shape == (5, 3)
    assert sorted(path.name for path in out.iterdir()) == [
        *("report.md", "results.json", "run.lock", "teacher-int8.onnx"),
    ]


@pytest.mark.slow
def test_quantize_works_without_real_images(apps: Run, teacher: Path, small_file: Path):
    done = apps("quantize", teacher, small_file, "--out", "out", "--images", "6")
    assert done.returncode == 0, done.stderr
    assert "n/a (no --data)" in done.stdout and "Calibrated on 6 images a row" in done.stdout
    assert "6 images of the file, on which its own rows were calibrated" in done.stdout
    rows = json.loads(Path("out/results.json").read_text())["rows"]
    assert len(rows) == 8 and all(row["top1"] is None for row in rows)


def test_a_network_that_does_not_fit_the_file_is_refused(
    apps: Run, teacher: Path, small_file: Path, tmp_path: Path
):
    other = write_file(tmp_path / "other.h5", classes=("ant", "bee", "dog"))
    refused(
        apps("quantize", teacher, other), "3: ant, bee, cow", "3: ant, bee, dog", "same dataset"
    )
    more = write_file(tmp_path / "more.h5", classes=("ant", "bee", "cow", "dog"))
    refused(apps("quantize", teacher, more), "4: ant, bee, cow, ...", "same dataset")
    larger = write_file(tmp_path / "larger.h5", size=12)
    refused(apps("quantize", teacher, larger), "images of 8 px", "larger.h5 have 12 px")
    save_network(tmp_path / "backbone", classes=())
    refused(apps("quantize", "backbone", small_file), "backbone without a classifier")


def test_bad_input_is_refused_in_one_sentence(
    apps: Run, teacher: Path, small_file: Path, tmp_path: Path
):
    refused(apps("quantize", teacher), "no distilled.h5 under runs/")
    refused(apps("quantize", teacher, "gone.h5"), "gone.h5")
    refused(apps("quantize", "gone", small_file), "gone: cannot be read as safetensors")
    refused(apps("quantize", small_file, small_file), "cannot be read as safetensors", "teacher")
    (tmp_path / "half").write_bytes(teacher.read_bytes()[:5000])
    refused(apps("quantize", "half", small_file), "half: cannot be read as safetensors")
    refused(apps("quantize", teacher, small_file, "--method", "kl"), "--method kl", "percentile")
    refused(apps("quantize", teacher, small_file, "--baselines"), "random_real.h5")
    refused(apps("quantize", teacher, small_file, "--data", "gone"), "gone")
    refused(apps("quantize", teacher, small_file, "--out", "half"), "half: ", "another --out")
    assert apps("quantize", teacher, small_file, "--images", "0").returncode == 2
    assert not list(small_file.parent.glob("quantize"))
