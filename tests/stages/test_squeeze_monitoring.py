"""What pre-training logs: steps, spread and neighbours, which change nothing."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from scdd.datasets import ResidentSource
from tests.stages.small_squeeze import MakeSource, assert_equal, run, settings


def test_steps_and_neighbours_are_logged_when_asked_and_at_the_end(make_source: MakeSource):
    train, val = make_source(34), make_source(8, seed=1)
    _, lines = run(settings(epochs=5, knn_every=2), train, val)
    assert [line["epoch"] for line in lines if "knn_top1" in line] == [2, 4, 5]
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20]
    assert all(0 < line["spread"] < 1.1 for line in lines)
    assert all(1 <= line["effective_rank"] <= 8 for line in lines)
    assert all(0 <= line["knn_top1"] <= 100 for line in lines if "knn_top1" in line)
    _, lines = run(settings(epochs=2), train, val)
    assert not any("knn_top1" in line for line in lines)


def test_the_logged_neighbours_are_those_of_the_backbone(make_source: MakeSource):
    train, val = make_source(40), make_source(40, seed=1)
    wrong = ResidentSource(
        val.images, val.labels.roll(10) // 2 + val.labels // 2, val.classes, val.mean, val.std
    )
    squeezed, lines = run(settings(epochs=2, knn_every=2, knn_k=3), train, wrong)
    backbone = squeezed.backbone.eval()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (train.mean, train.std))
    with torch.no_grad():
        x, test = (backbone((s.images / 255 - mean) / std).double() for s in (train, wrong))
    model = KNeighborsClassifier(
        n_neighbors=3, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.1)
    )
    truth = model.fit(x, train.labels).score(test, wrong.labels)
    assert 0 < truth < 1 and lines[-1]["knn_top1"] == pytest.approx(100 * truth)


def test_what_is_monitored_changes_nothing(make_source: MakeSource):
    train, val = make_source(34), make_source(8, seed=1)
    watched, _ = run(settings(knn_every=1), train, val)
    alone, _ = run(settings(), train, val)
    assert_equal(watched.state_dict(), alone.state_dict())
