"""Clusters: numbers on clouds that one knows, and the picture of a real run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from benchmarks import clusters
from benchmarks.tables import build_table
from scdd.checkpoint import load_weights
from scdd.datasets import load_split
from scdd.errors import UserError
from scdd.models import create_model
from tests import tiny_run
from tests.conftest import FinishedRun


def clouds(spread: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 25)
    return 10 * np.eye(6)[labels] + spread * rng.normal(size=(100, 6)), labels


def test_classes_far_apart_are_found_and_mixed_ones_are_not():
    features, labels = clouds(0.1)
    assert clusters.measures(features, labels)["rand"] == 1
    mixed = clusters.measures(features, np.random.default_rng(1).permutation(labels))
    assert abs(mixed["rand"]) < 0.1 and mixed["silhouette"] < 0


def test_the_silhouette_is_that_by_hand():
    features, labels = clouds(3)
    away = cdist(features, features)
    values = []
    for row, own in enumerate(labels):
        inside = away[row, (labels == own) & (np.arange(100) != row)].mean()
        nearest = min(away[row, labels == other].mean() for other in range(4) if other != own)
        values.append((nearest - inside) / max(nearest, inside))
    assert clusters.measures(features, labels)["silhouette"] == pytest.approx(np.mean(values))


def test_one_image_a_class_has_no_silhouette_and_equal_images_do_not_stop_it():
    features = np.zeros((4, 3))
    assert clusters.measures(features, np.arange(4))["silhouette"] is None
    assert clusters.measures(features, np.array([0, 0, 1, 1]))["rand"] == 0


def test_a_run_is_drawn_beside_its_random_real_images(
    finished_run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, out, result = finished_run.path, tmp_path / "c.png", tmp_path / "c.json"
    files = [str(run / name) for name in ("distilled.h5", "real_start.h5")]
    words = ["--teacher", str(run / "teacher.safetensors"), "--out", str(out)]
    clusters.main([*files, *words, "--result", str(result), "--classes", "5"])
    found = json.loads(result.read_text())
    assert [row["images"] for row in found["rows"]] == [
        "distilled.h5",
        "real_start.h5",
        "random real",
    ]
    assert [row["count"] for row in found["rows"]] == [10, 10, 10]
    assert out.read_bytes().startswith(b"\x89PNG")
    assert build_table(result) in capsys.readouterr().out


def test_features_are_those_that_the_classifier_of_the_teacher_sees(finished_run: FinishedRun):
    path = finished_run.path / "teacher.safetensors"
    weights, facts = load_weights(path)
    images, _ = clusters.read_file(
        finished_run.path / "random_real.h5", tuple(facts["classes"]), 16, 10
    )
    teacher = create_model("resnet8", 10, 16)
    teacher.load_state_dict(weights)
    seen: list[torch.Tensor] = []
    teacher.fc.register_forward_hook(lambda module, inputs, _: seen.append(inputs[0]))
    mean, std = (torch.tensor(facts[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        teacher.eval()((images / 255 - mean) / std)
    backbone = create_model("resnet8", 10, 16)
    backbone.load_state_dict(weights)
    backbone.set_submodule("fc", torch.nn.Identity())
    found = clusters.features_of(backbone.eval(), images, facts, torch.device("cpu"))
    np.testing.assert_allclose(found, seen[0].double().numpy(), rtol=1e-4, atol=1e-5)


def test_real_images_come_from_train_as_many_as_the_file_has(tmp_path: Path):
    root = tiny_run.write_image_folder(tmp_path / "images")
    facts = {
        "classes": ["ant", "bee", "cow"],
        "image_size": 16,
        "mean": (0.5,) * 3,
        "std": (0.2,) * 3,
    }
    found = clusters.real_images(root, Path("none.h5"), facts, 2, 5)
    assert found is not None
    images, labels = found
    assert labels.bincount().tolist() == [5, 5]
    train = load_split(root, "train", 16, (0.5,) * 3, (0.2,) * 3)
    pool = {bytes(image.numpy()) for image in train.read(torch.arange(len(train)))}
    assert {bytes(image.numpy()) for image in images} <= pool
    assert clusters.real_images(None, tmp_path / "none.h5", facts, 2, 5) is None
    with pytest.raises(UserError, match="has other classes than the teacher knows"):
        clusters.real_images(root, Path("x"), facts | {"classes": ["a", "b", "c"]}, 2, 5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("README.md", "README.md: pictures are PNG; choose a name that ends in .png"),
        ("notes.png", "notes.png: is no picture; choose another name"),
        ("notes.png/c.png", "cannot be written to; choose another folder"),
    ],
)
def test_what_is_no_picture_is_not_replaced(name: str, said: str, tmp_path: Path):
    for path in (tmp_path / "README.md", tmp_path / "notes.png"):
        path.write_text("words")
    words = ["x.h5", "--teacher", "t.safetensors", "--out", str(tmp_path / name)]
    with pytest.raises(UserError) as caught:
        clusters.main(words)
    assert said in str(caught.value)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"words"}


def test_a_teacher_of_other_classes_is_refused(finished_run: FinishedRun):
    path = finished_run.path / "distilled.h5"
    with pytest.raises(UserError, match="is of other classes or another image size than"):
        clusters.read_file(path, ("a", "b"), 16, 2)
    with pytest.raises(UserError, match="cannot be read"):
        clusters.main([str(path), "--teacher", "/no/teacher", "--out", "/tmp/none.png"])
    backbone = finished_run.path / "squeeze" / "backbone.safetensors"
    with pytest.raises(UserError, match="is no teacher; give the"):
        clusters.main([str(path), "--teacher", str(backbone), "--out", "/tmp/none.png"])
