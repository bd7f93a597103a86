"""The linear probe and kNN against scikit-learn; features leave the backbone as it was."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from scdd.datasets import ResidentSource
from scdd.models import create_model
from scdd.probing import (
    Standardisation,
    features,
    fit_linear,
    knn_accuracy,
    measure_standardisation,
)

CPU = torch.device("cpu")


def blobs(count: int, classes: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Overlapping clusters whose coordinates have very different means and spreads."""
    draw = torch.Generator().manual_seed(seed)
    centres = 1.5 * torch.randn(classes, width, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(classes, (count,), generator=draw)
    x = centres[labels] + torch.randn(count, width, generator=draw)
    return x * torch.logspace(-2, 2, width) + torch.linspace(-50, 50, width), labels


def objective(x: np.ndarray, labels: np.ndarray, weight: np.ndarray, bias: np.ndarray, l2: float):
    """Mean cross-entropy + l2/2 ||W||^2 in numpy."""
    logits = x @ weight.T + bias
    logits -= logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(x)), labels]
    return losses.mean() + 0.5 * l2 * np.square(weight).sum()


@pytest.mark.parametrize("l2", [1e-3, 1e-2, 1.0])
def test_the_linear_probe_is_scikit_learns_logistic_regression_on_standardised_features(l2: float):
    x, labels = blobs(200, 4, 6, seed=0)
    weight, bias = fit_linear(x, labels, 4, l2, iterations=500)
    assert weight.shape == (4, 6) and bias.shape == (4,) and weight.dtype == torch.float32
    scaler = StandardScaler().fit(x.double().numpy())
    model = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-10, max_iter=5000)
    model.fit(scaler.transform(x.double().numpy()), labels.numpy())
    test, _ = blobs(100, 4, 6, seed=9)
    ours = torch.softmax(test.double() @ weight.double().T + bias.double(), dim=1).numpy()
    theirs = model.predict_proba(scaler.transform(test.double().numpy()))
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_the_fit_is_a_minimum_of_its_objective():
    x, labels = blobs(150, 3, 5, seed=2)
    l2, z = 0.01, StandardScaler().fit(x.double().numpy())
    weight, bias = fit_linear(x, labels, 3, l2, iterations=500)
    # Unfold the standardisation: w.x + b = (w * scale).z + (b + w.mean).
    w = weight.double().numpy() * z.scale_
    b = bias.double().numpy() + weight.double().numpy() @ z.mean_
    data, truth = z.transform(x.double().numpy()), labels.numpy()
    best, dice = objective(data, truth, w, b, l2), np.random.default_rng(0)
    for _ in range(200):
        dw, db = dice.normal(size=w.shape), dice.normal(size=b.shape)
        size = 10 ** dice.uniform(-2.5, 0)
        assert objective(data, truth, w + size * dw, b + size * db, l2) > best


def test_a_feature_that_never_changes_does_no_harm():
    x, labels = blobs(100, 3, 4, seed=3)
    constant = torch.cat([x, torch.full((100, 1), 7.0)], dim=1)
    plain, _ = fit_linear(x, labels, 3, 0.01, 300)
    weight, bias = fit_linear(constant, labels, 3, 0.01, 300)
    assert torch.isfinite(weight).all() and torch.isfinite(bias).all()
    torch.testing.assert_close(weight[:, :4], plain, rtol=1e-2, atol=1e-4)


def test_a_class_without_examples_gets_a_row_too():
    x, labels = blobs(100, 3, 4, seed=4)
    weight, bias = fit_linear(x, labels, 5, 0.01, 200)
    assert weight.shape == (5, 4)
    answers = (x @ weight.T + bias).argmax(dim=1)
    assert int(answers.max()) <= 2


def test_standardisation_is_scikit_learns_however_the_features_are_cut_into_blocks():
    x, _ = blobs(150, 3, 5, seed=12)
    x = torch.cat([x, torch.full((150, 1), 7.0)], dim=1)  # A constant is left unscaled.
    truth = StandardScaler().fit(x.double().numpy())
    for size in (1, 7, 1000):
        found = measure_standardisation(lambda size=size: x.split(size))
        np.testing.assert_allclose(found.centre.numpy(), truth.mean_, rtol=1e-9)
        np.testing.assert_allclose(found.spread.numpy(), truth.scale_, rtol=1e-9)
    np.testing.assert_allclose(found.of(x).numpy(), truth.transform(x.double().numpy()), atol=1e-9)


def test_a_folded_classifier_says_of_raw_features_what_the_other_says_of_standardised_ones():
    x, _ = blobs(80, 3, 6, seed=13)
    draw = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(4, 6, generator=draw), torch.randn(4, generator=draw)
    scaling = measure_standardisation(lambda: [x])
    wanted = F.linear(scaling.of(x), weight.double(), bias.double())
    folded = scaling.fold(weight, bias)
    assert all(tensor.dtype == torch.float32 for tensor in folded)
    folded_weight, folded_bias = (tensor.double() for tensor in folded)
    found = F.linear(x.double(), folded_weight, folded_bias)
    # No further apart than rounding the folded numbers to float32 can make them.
    rounding = 2.0**-24 * (x.double().abs() @ folded_weight.abs().T + folded_bias.abs())
    assert ((found - wanted).abs() <= 1.01 * rounding).all()

    ones = torch.ones(6, dtype=torch.float64)
    same = Standardisation(torch.zeros_like(ones), ones).fold(weight, bias)
    assert torch.equal(same[0], weight) and torch.equal(same[1], bias)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (7, 0.1), (20, 1.0), (500, 0.07)])
def test_knn_is_scikit_learns_with_cosine_distance_and_exponential_votes(
    k: int, temperature: float
):
    train, train_labels = blobs(160, 5, 8, seed=5)
    test, test_labels = blobs(90, 5, 8, seed=6)
    found = knn_accuracy(train, train_labels, test, test_labels, k, temperature)
    model = KNeighborsClassifier(
        n_neighbors=min(k, len(train)),
        metric="cosine",
        weights=lambda distance: np.exp((1 - distance) / temperature),
    )
    model.fit(F.normalize(train.double()).numpy(), train_labels.numpy())
    truth = model.score(F.normalize(test.double()).numpy(), test_labels.numpy())
    assert found == pytest.approx(100 * truth)


def test_knn_sees_more_test_images_than_one_block_holds():
    train, train_labels = blobs(50, 3, 4, seed=7)
    test, test_labels = train.repeat(45, 1), train_labels.repeat(45)
    assert knn_accuracy(train, train_labels, test, test_labels, 1, 0.1) == 100


def test_knn_does_not_overflow_at_a_low_temperature():
    draw = torch.Generator().manual_seed(8)
    labels = torch.arange(3).repeat(20)
    # Cosines of 0.94 between classes, so that the votes for a wrong one are huge as well.
    train = 1 + 0.5 * torch.eye(3)[labels] + 0.01 * torch.randn(60, 3, generator=draw)
    assert knn_accuracy(train, labels, train, labels, 60, 0.005) == 100


def test_features_are_those_of_eval_mode_and_leave_every_buffer_bit_equal():
    torch.manual_seed(0)
    backbone = create_model("resnet8", 0, 8).train()
    images = torch.randint(256, (23, 3, 8, 8), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    source = ResidentSource(images, torch.zeros(23, dtype=torch.long), ("a",), mean, std)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    found = features(backbone, source, CPU, batch=7)
    assert backbone.training and not found.requires_grad
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    x = (images / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    with torch.no_grad():
        truth = torch.cat([backbone.eval()(image[None]) for image in x])
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)
