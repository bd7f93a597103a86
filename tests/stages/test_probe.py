"""The probe: teacher = backbone + head, chosen penalty, and a backbone that stays as it was."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from scdd.checkpoint import Checkpoint
from scdd.config.probe import ProbeConfig
from scdd.datasets import ResidentSource
from scdd.datasets.sources import Request
from scdd.errors import RunError
from scdd.models import create_model
from scdd.stages import probe as probe_stage
from scdd.stages.probe import Head, Probed, probe, shard_features, shards_of
from tests.stages.conftest import CPU, SIZE

MakeSource = Callable[..., ResidentSource]


@pytest.fixture(params=["resnet8", "mobilenet_v3_large", "vit_tiny"])
def backbone(request: pytest.FixtureRequest) -> nn.Module:
    """A random backbone in train mode, with statistics of some random batches."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = create_model(request.param, 0, SIZE).train()
        with torch.no_grad():
            for _ in range(3):
                net(torch.randn(16, 3, SIZE, SIZE))
    return net


def settings(**changes: Any) -> ProbeConfig:
    base: dict[str, Any] = {"l2": (0.01,), "crops": 0, "iterations": 300}
    return ProbeConfig(**(base | changes))


def sgd(**changes: Any) -> ProbeConfig:
    base: dict[str, Any] = {"solver": "sgd", "lr": (0.03,), "epochs": 4, "batch": 16}
    return ProbeConfig(**(base | changes))


class Killed(Exception):
    """Stands for a kill."""


@dataclass(eq=False)
class Mortal(ResidentSource):
    """A source whose reader is killed after some batches of crops."""

    batches_left: int = 0

    def crops(self, requests: Iterable[Request]) -> Iterator[tuple[Tensor, ...]]:
        for item in super().crops(requests):
            if self.batches_left == 0:
                raise Killed
            self.batches_left -= 1
            yield item


def mortal(source: ResidentSource, batches: int) -> Mortal:
    return Mortal(source.images, source.labels, source.classes, source.mean, source.std, batches)


def resnet8() -> nn.Module:
    torch.manual_seed(3)
    return create_model("resnet8", 0, SIZE)


def head_of(found: Probed) -> Tensor:
    return torch.cat([found.teacher.get_parameter(f"fc.{name}").flatten() for name in Head._fields])


def pixels(source: ResidentSource) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (source.mean, source.std))
    return (source.images / 255 - mean) / std


@pytest.mark.parametrize("cfg", [settings(crops=1), sgd(lr=(0.01, 0.1))], ids=["lbfgs", "sgd"])
def test_the_teacher_is_the_backbone_with_a_linear_head(
    cfg: ProbeConfig, backbone: nn.Module, make_source: MakeSource
):
    train, val = make_source(40), make_source(20, seed=1)
    before = copy.deepcopy(backbone.state_dict())
    teacher = probe(cfg, backbone, train, val, 0, CPU).teacher
    assert teacher.num_classes == 4 and not teacher.training
    own = teacher.state_dict()
    for name, tensor in before.items():
        assert torch.equal(backbone.state_dict()[name], tensor), f"{name} of the backbone moved"
        assert torch.equal(own[name], tensor), f"{name} of the teacher is not the backbone's"
    head: Any = teacher.get_submodule(str(teacher.head))
    with torch.no_grad():
        features = backbone.eval()(pixels(val))
        torch.testing.assert_close(
            teacher(pixels(val)), features @ head.weight.T + head.bias, rtol=1e-4, atol=1e-4
        )


def test_the_head_is_scikit_learns_on_the_features(make_source: MakeSource):
    torch.manual_seed(3)
    net = create_model("resnet8", 0, SIZE)
    train, val = make_source(60), make_source(40, seed=1)
    found = probe(settings(), net, train, val, 0, CPU)
    with torch.no_grad():
        x, test = (net.eval()(pixels(source)).double().numpy() for source in (train, val))
        answers = torch.softmax(found.teacher(pixels(val)), dim=1).numpy()
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-10, max_iter=5000)
    model.fit(scaler.transform(x), train.labels.numpy())
    truth = model.predict_proba(scaler.transform(test))
    assert abs(answers - truth).max() < 1e-3
    right = 100 * (truth.argmax(axis=1) == val.labels.numpy()).mean()
    assert found.accuracy.top1 == pytest.approx(right) and found.chosen == {"l2": 0.01}


@pytest.mark.parametrize("standardise", [True, False])
def test_sgd_without_augmentation_ends_where_scikit_learn_does(
    standardise: bool, make_source: MakeSource
):
    net, decay = resnet8(), 0.1
    train, val = make_source(60), make_source(40, seed=1)
    cfg = sgd(
        crop_scale=(1.0, 1.0),
        flip=False,
        standardise=standardise,
        weight_decay=decay,
        lr=(0.3,),
        epochs=250,
        batch=60,
    )
    found = probe(cfg, net, train, val, 0, CPU)
    with torch.no_grad():
        x, test = (net.eval()(pixels(source)).double().numpy() for source in (train, val))
        answers = torch.softmax(found.teacher(pixels(val)), dim=1).numpy()
    scaler = StandardScaler(with_mean=standardise, with_std=standardise).fit(x)
    model = LogisticRegression(C=1 / (decay * len(x)), tol=1e-10, max_iter=5000)
    model.fit(scaler.transform(x), train.labels.numpy())
    assert abs(answers - model.predict_proba(scaler.transform(test))).max() < 1e-3


def test_crops_are_more_examples_drawn_by_the_seed(make_source: MakeSource):
    torch.manual_seed(3)
    net = create_model("resnet8", 0, SIZE)
    train, val = make_source(40), make_source(20, seed=1)

    def head(seed: int, **changes: Any) -> torch.Tensor:
        return probe(settings(**changes), net, train, val, seed, CPU).teacher.get_parameter(
            "fc.weight"
        )

    plain, one, again = head(0), head(0, crops=1), head(0, crops=1)
    assert torch.equal(one, again) and not torch.equal(one, plain)
    assert not torch.equal(head(1, crops=1), one)
    assert torch.equal(head(1), plain), "without crops nothing is drawn"


def test_of_several_penalties_one_that_ruins_the_fit_is_not_taken(make_source: MakeSource):
    torch.manual_seed(3)
    net = create_model("resnet8", 0, SIZE)
    train, val = make_source(80), make_source(40, seed=1)
    for order in ((1e4, 1e-3), (1e-3, 1e4)):
        found = probe(settings(l2=order), net, train, val, 0, CPU)
        assert found.chosen == {"l2": 1e-3} and found.accuracy.top1 == 100
        assert found.tried[1e-3] > found.tried[1e4] and list(found.tried) == list(order)


def test_the_penalty_is_not_chosen_by_the_validation_images(make_source: MakeSource):
    torch.manual_seed(3)
    net = create_model("resnet8", 0, SIZE)
    train, val = make_source(80), make_source(40, seed=1)
    liar = ResidentSource(val.images, 3 - val.labels, val.classes, val.mean, val.std)
    honest, fooled = (
        probe(settings(l2=(1e-3, 0.3)), net, train, source, 0, CPU) for source in (val, liar)
    )
    assert honest.chosen == fooled.chosen
    assert torch.equal(*(each.teacher.get_parameter("fc.weight") for each in (honest, fooled)))


def test_a_class_with_few_images_does_not_break_the_choice(make_source: MakeSource):
    torch.manual_seed(3)
    net = create_model("resnet8", 0, SIZE)
    source = make_source(9)
    for seed in range(5):
        found = probe(settings(l2=(1e-3, 1e-2), holdout=0.5), net, source, source, seed, CPU)
        assert len(found.teacher.get_parameter("fc.weight")) == 4


# SGD


@pytest.mark.parametrize("order", [(1e-5, 0.01, 50.0), (50.0, 0.01, 1e-5)])
def test_of_several_rates_neither_one_that_diverges_nor_one_that_crawls_is_taken(
    order: tuple[float, ...], make_source: MakeSource
):
    # Momentum with decay is stable below rate * decay = 2 * (1 + momentum) = 3.8 only. The crops
    # are not flipped, as it is the side of an image that tells its class.
    cfg = sgd(lr=order, weight_decay=0.3, epochs=30, batch=8, crop_scale=(0.8, 1.0), flip=False)
    found = probe(cfg, resnet8(), make_source(80), make_source(40, seed=1), 0, CPU)
    assert found.chosen == {"lr": 0.01} and found.tried[50.0] == 0
    assert found.tried[0.01] > found.tried[1e-5] and found.accuracy.top1 > 90


def test_a_rate_learns_the_same_alone_and_beside_one_that_diverges(make_source: MakeSource):
    train, val = make_source(80), make_source(40, seed=1)
    swept = probe(sgd(lr=(1e38, 0.03)), resnet8(), train, val, 0, CPU)
    alone = probe(sgd(lr=(0.03,)), resnet8(), train, val, 0, CPU)
    assert swept.tried[1e38] == 0 and swept.chosen == alone.chosen == {"lr": 0.03}
    assert torch.equal(head_of(swept), head_of(alone)), "the best is trained again on everything"


def test_the_rate_is_not_chosen_by_the_validation_images(make_source: MakeSource):
    train, val = make_source(80), make_source(40, seed=1)
    liar = ResidentSource(val.images, 3 - val.labels, val.classes, val.mean, val.std)
    honest, fooled = (
        probe(sgd(lr=(0.1, 0.001)), resnet8(), train, source, 0, CPU) for source in (val, liar)
    )
    assert honest.chosen == fooled.chosen and honest.tried == fooled.tried
    assert torch.equal(head_of(honest), head_of(fooled))


def test_where_every_rate_diverges_the_run_stops_with_a_sentence(make_source: MakeSource):
    source = make_source(40)
    for rates in ((1e38,), (1e38, 2e38)):
        with pytest.raises(RunError) as caught:
            probe(sgd(lr=rates), resnet8(), source, source, 0, CPU)
        assert str(caught.value) == (
            "probe: the classifier diverges at every rate of probe.lr (now "
            f"{', '.join(f'{rate:g}' for rate in rates)}); lower them and run again with --redo "
            "probe"
        )


def test_order_and_crops_come_from_the_seed(make_source: MakeSource):
    train, val = make_source(40), make_source(20, seed=1)

    def head(seed: int, **changes: Any) -> Tensor:
        return head_of(probe(sgd(**changes), resnet8(), train, val, seed, CPU))

    assert torch.equal(head(0), head(0)) and not torch.equal(head(0), head(1))
    whole = {"crop_scale": (1.0, 1.0), "flip": False}
    assert not torch.equal(head(0, **whole), head(1, **whole)), "the order of the images"
    at_once = whole | {"batch": 40}
    torch.testing.assert_close(head(0, **at_once), head(1, **at_once), rtol=1e-3, atol=1e-5)
    assert not torch.allclose(head(0, batch=40), head(1, batch=40), rtol=1e-3, atol=1e-5)


# 40 images, 10 of them held out in the sweep: two steps an epoch there, three on all of them.
@pytest.mark.parametrize("batches", [1, 7, 8, 9, 19])
def test_killed_after_any_batch_sgd_goes_on_to_the_same_head_bit_for_bit(
    batches: int, make_source: MakeSource, tmp_path: Path
):
    train, val = make_source(40), make_source(20, seed=1)
    cfg = sgd(lr=(0.01, 0.1), holdout=0.25)
    whole = probe(cfg, resnet8(), train, val, 0, CPU)
    checkpoint = Checkpoint(tmp_path / "probe.checkpoint", 0)
    with pytest.raises(Killed):
        probe(cfg, resnet8(), mortal(train, batches), val, 0, CPU, checkpoint)
    rest = mortal(train, 100)
    resumed = probe(cfg, resnet8(), rest, val, 0, CPU, checkpoint)
    assert torch.equal(head_of(resumed), head_of(whole)) and resumed.tried == whole.tried
    assert 100 - rest.batches_left == 4 * 2 + 4 * 3 - batches, "nothing is done twice"


# Features in shards


@pytest.mark.parametrize(
    ("cfg", "views"),
    [
        (settings(crops=2), 3),
        (sgd(), 1),
        (sgd(lr=(0.1, 0.2), standardise=False), 1),
        (sgd(standardise=False), 0),
        (ProbeConfig(solver="given"), 0),
    ],
)
@pytest.mark.parametrize("images", [1, 4999, 5000, 12001])
def test_the_shards_hold_every_view_of_every_image_once(cfg: ProbeConfig, views: int, images: int):
    found = [
        (shard.view, row)
        for shard in shards_of(cfg, images)
        for row in range(shard.first, shard.last)
    ]
    assert found == [(view, row) for view in range(views) for row in range(images)]


def test_every_image_is_cropped_anew_in_every_view(
    make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
):
    """The same image again and again, in several blocks of two shards."""
    source = make_source(1)
    images, labels = source.images.expand(12, -1, -1, -1), torch.zeros(12, dtype=torch.long)
    copies = ResidentSource(images, labels, source.classes, source.mean, source.std)
    monkeypatch.setattr(probe_stage, "BLOCK", 3)
    monkeypatch.setattr(probe_stage, "BLOCKS_PER_SHARD", 2)
    cfg = settings(crops=2, crop_scale=(0.2, 0.8))
    views = torch.zeros(3, 12, 64)
    for shard in shards_of(cfg, 12):
        x = shard_features(cfg, resnet8(), copies, shard, 0, CPU)
        views[shard.view, shard.first : shard.last] = x
    torch.testing.assert_close(views[0], views[0][:1].expand(12, -1))
    # So few pixels have few crops, and a pair of 24 may well be the same.
    assert len(views[1:].flatten(0, 1).unique(dim=0)) > 18


@pytest.mark.parametrize("cfg", [settings(crops=2), sgd(lr=(0.01, 0.1))], ids=["lbfgs", "sgd"])
def test_a_shard_is_the_same_on_its_own_and_its_size_changes_nothing(
    cfg: ProbeConfig, make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
):
    train, val = make_source(70), make_source(20, seed=1)
    monkeypatch.setattr(probe_stage, "BLOCK", 16)
    found = []
    for blocks in (1, 3, 100):
        monkeypatch.setattr(probe_stage, "BLOCKS_PER_SHARD", blocks)
        stored = {
            shard: shard_features(cfg, resnet8(), train, shard, 0, CPU)
            for shard in reversed(shards_of(cfg, len(train)))
        }
        assert all(len(x) == shard.last - shard.first for shard, x in stored.items())
        found.append(probe(cfg, resnet8(), train, val, 0, CPU, stored=stored.__getitem__))
    alone = probe(cfg, resnet8(), train, val, 0, CPU)
    for other in found:
        assert torch.equal(head_of(other), head_of(alone)) and other.tried == alone.tried
