"""DistilledDataset in DataLoaders of all kinds: the same samples as one by one, as in an epoch."""

import itertools
import pickle
from collections.abc import Iterable

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler, Subset

from scdd.checkpoint import save_weights
from scdd.config.relabel import RelabelConfig
from scdd.distilled import Batch, DistilledDataset, DistilledFile, Sample, dataset, render_views
from scdd.errors import FormatError
from scdd.files import sha256_of
from scdd.models import create_model
from tests.distilled.conftest import numbered, opened, seeded

GROUPED = RelabelConfig(mix="cutmix", teacher_bn="batch", group=5)


def assert_same(batch: Batch | Sample, samples: list[Sample]) -> None:
    """Each field of a batch is that of the samples, bit by bit."""
    for name in Sample._fields:
        assert torch.equal(getattr(batch, name), torch.stack([getattr(s, name) for s in samples]))


def rows_of(batches: Iterable[Sample]) -> list[list[int]]:
    """Numbers of the images, where each has a class of its own."""
    return [batch.labels.tolist() for batch in batches]


@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
def test_a_sample_is_what_the_file_says_of_an_image_and_a_view(content, tmp_path, mix: str):
    made = content(RelabelConfig(mix=mix), classes=3, ipc=3, views=3)
    data = opened(made, tmp_path)
    std, mean = (torch.tensor(values)[:, None, None] for values in (data.std, data.mean))
    with h5py.File(data.path) as file:
        for epoch, row in itertools.product(range(5), range(len(data))):
            data.set_epoch(epoch)
            sample, view = data[row], epoch % 3
            pixels = torch.from_numpy(file["images"][()])
            shown = render_views(pixels, made.records, view, torch.tensor([row]))[0]
            assert torch.equal(sample.images, (shown - mean) / std)
            logits = file["soft_labels/logits"][view, row].astype(np.float32)
            assert sample.logits.tolist() == logits.tolist()
            assert sample.labels.dtype == torch.int64 and sample.labels == file["labels"][row]
            if mix == "none":
                assert sample.partner_labels == sample.labels and sample.label_weight == 1
                continue
            assert sample.partner_labels == file["labels"][file["views/partner"][view, row]]
            if mix == "cutmix":
                box = file["views/box"][view, row].astype(int)
                assert sample.label_weight == pytest.approx(1 - box[2] * box[3] / 64)
            else:
                assert sample.label_weight * 65535 == file["views/lambda"][view, row]


@given(
    count=st.integers(1, 20),
    batch=st.integers(1, 9),
    epoch=st.integers(0, 5),
    shuffle=st.booleans(),
    codec=st.sampled_from(["full", "int8", "int4", "topk"]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=30)
def test_any_loader_yields_batches_of_the_same_samples(
    count, batch, epoch, shuffle, codec, seed, content, tmp_path_factory
):
    top = {"top": 2} if codec == "topk" else {}
    cfg = RelabelConfig(mix="cutmix")
    made = content(cfg, classes=count + 3, ipc=1, views=3, codec=codec, seed=seed, **top)
    data = opened(made, tmp_path_factory.mktemp("loader"))
    data.set_epoch(epoch)
    samples = list(data)
    loader = DataLoader(data, batch_size=batch, shuffle=shuffle, generator=seeded(seed))
    seen = []
    for part in loader:
        assert type(part) is Sample
        assert_same(part, [samples[row] for row in part.labels.tolist()])
        seen += part.labels.tolist()
    assert sorted(seen) == list(range(len(data))) and (shuffle or seen == sorted(seen))
    for part in data.epoch(epoch, batch, seeded(seed)):
        assert_same(part, [samples[row] for row in part.labels.tolist()])


@pytest.mark.parametrize("cfg", [GROUPED, RelabelConfig()], ids=["groups", "no groups"])
def test_the_batch_sampler_draws_the_batches_of_an_epoch(content, tmp_path, cfg):
    data = opened(numbered(content(cfg, classes=17, ipc=1, views=3)), tmp_path)
    sampler = data.batch_sampler(6, seeded())
    loader = DataLoader(data, batch_sampler=sampler)
    order = seeded()
    for epoch in (0, 1, 2, 4):
        data.set_epoch(epoch)
        assert len(loader) == data.steps(6)
        for mine, theirs in zip(loader, data.epoch(epoch, 6, order), strict=True):
            for name in Sample._fields:
                assert torch.equal(getattr(mine, name), getattr(theirs, name))
            if cfg.teacher_bn == "batch":
                group = data.records.parameters["group"][epoch % 3]
                together = torch.isin(group, group[mine.labels].unique()).nonzero().squeeze(1)
                assert sorted(mine.labels.tolist()) == together.tolist()


def test_a_batch_sampler_of_less_than_a_group_is_a_mistake(content, tmp_path):
    data = opened(content(GROUPED, classes=10, ipc=1), tmp_path)
    with pytest.raises(ValueError, match="groups of 5 images"):
        data.batch_sampler(4, seeded())


@pytest.mark.parametrize(
    ("method", "workers"),
    [
        ("fork", 2),
        *(pytest.param("fork", count, marks=pytest.mark.slow) for count in (1, 4)),
        *(pytest.param("spawn", count, marks=pytest.mark.slow) for count in (1, 2)),
    ],
)
def test_workers_that_live_through_all_epochs_follow_each(
    content, tmp_path, method: str, workers: int
):
    data = opened(content(RelabelConfig(mix="cutmix"), classes=13, ipc=1, views=3), tmp_path)
    data.soft_labels(0)  # A file that is open already does not disturb them.
    loader = DataLoader(
        data,
        batch_size=3,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context=method,
        persistent_workers=True,
    )
    for epoch in (0, 1, 5, 2):
        data.set_epoch(epoch)
        seen = []
        for part in loader:
            assert_same(part, [data[row] for row in part.labels.tolist()])
            seen += part.labels.tolist()
        assert sorted(seen) == list(range(13))


def test_workers_show_whole_groups(content, tmp_path):
    data = opened(content(GROUPED, classes=15, ipc=1, views=2), tmp_path)
    data.set_epoch(1)
    sampler = data.batch_sampler(5, seeded())
    parts = list(DataLoader(data, batch_sampler=sampler, num_workers=2))
    for part, wanted in zip(parts, data.epoch(1, 5, seeded()), strict=True):
        for name in Sample._fields:
            assert torch.equal(getattr(part, name), getattr(wanted, name))


def test_ranks_of_a_distributed_sampler_share_an_epoch(content, tmp_path):
    data = opened(content(classes=12, ipc=1), tmp_path)
    parts = []
    for rank in range(3):
        sampler = DistributedSampler(data, num_replicas=3, rank=rank)
        parts += itertools.chain(*rows_of(DataLoader(data, batch_size=2, sampler=sampler)))
    assert sorted(parts) == list(range(12))


def test_a_subset_and_torchs_subset_serve_their_images(content, tmp_path):
    data = opened(content(classes=3, ipc=4), tmp_path)
    data.set_epoch(2)
    part = data.subset(2)
    assert_same(next(iter(DataLoader(part, batch_size=6))), [data[row] for row in range(6)])
    (batch,) = DataLoader(Subset(data, [7, 2]), batch_size=2)
    assert_same(batch, [data[7], data[2]])
    part.set_epoch(0)
    assert not torch.equal(part[0].images, data[0].images)


def test_a_pickled_dataset_serves_the_same_samples_of_its_own_epoch(content, tmp_path):
    data = opened(content(RelabelConfig(mix="mixup")), tmp_path)
    data.set_epoch(3)
    samples = list(data)
    copy = pickle.loads(pickle.dumps(data))
    assert_same(next(iter(DataLoader(copy, batch_size=6, num_workers=1))), samples)
    copy.set_epoch(0)
    assert torch.equal(data[1].images, samples[1].images)
    assert not torch.equal(copy[1].images, samples[1].images)


@pytest.mark.parametrize("cfg", [None, RelabelConfig()], ids=["images alone", "hard"])
def test_without_soft_labels_a_loader_gets_empty_ones(content, tmp_path, cfg):
    data = opened(content(cfg, codec="hard"), tmp_path)
    (batch,) = DataLoader(data, batch_size=6)
    assert batch.logits.shape == (6, 0) and batch.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_worker_computes_the_labels_that_a_teacher_is_to_give(content, tmp_path):
    net = create_model("resnet8", 3, 8).eval()
    weights = tmp_path / "elsewhere.safetensors"
    names = [f"class {number}" for number in range(3)]
    facts = {"arch": "resnet8", "num_classes": 3, "image_size": 8, "classes": names}
    save_weights(weights, net.state_dict(), facts)
    about = {"teacher": {"weights": sha256_of(weights)}}
    content(RelabelConfig(mix="mixup"), codec="teacher", about=about).write(tmp_path / "d.h5")
    data = DistilledDataset.open(tmp_path / "d.h5", teacher=weights)
    data.set_epoch(3)
    for batch in DataLoader(data, batch_size=4, num_workers=1):
        with torch.no_grad():
            torch.testing.assert_close(batch.logits, net(batch.images))


def test_an_index_counts_as_in_a_list(content, tmp_path):
    data = opened(content(classes=3, ipc=2), tmp_path)
    assert torch.equal(data[-1].images, data[5].images)
    assert torch.equal(data[np.int64(2)].images, data[torch.tensor(2)].images)
    for index in (6, -7):
        with pytest.raises(IndexError, match=f"there are 6 images, but number {index}"):
            data[index]
    with pytest.raises(TypeError):
        data[1.0]


def test_a_worker_refuses_images_on_an_accelerator(content, tmp_path, monkeypatch):
    content().write(tmp_path / "distilled.h5")
    elsewhere = DistilledDataset.open(tmp_path / "distilled.h5", "meta")
    # As in a worker; a real one that fails takes seconds to end.
    monkeypatch.setattr(dataset, "get_worker_info", lambda: "a worker")
    with pytest.raises(ValueError, match="a worker cannot use images on meta; open the file on"):
        next(iter(DataLoader(elsewhere)))


def test_a_loader_notices_that_the_file_has_been_replaced(content, tmp_path):
    data = opened(content(), tmp_path)
    content(seed=5).write(tmp_path / "distilled.h5")
    with pytest.raises(FormatError, match="changed since it was opened"):
        next(iter(DataLoader(data)))


def test_the_file_is_opened_once_and_only_for_labels(content, tmp_path, monkeypatch):
    data = opened(content(views=4), tmp_path)
    opening, openings = DistilledFile.__init__, []

    def counted(self, path, contents=True):
        openings.append(contents)
        opening(self, path, contents)

    monkeypatch.setattr(DistilledFile, "__init__", counted)
    assert len(data) == 6 and data.subset(1).num_views == 4 and openings == []
    for epoch in range(9):
        data.set_epoch(epoch)
        list(DataLoader(data, batch_size=4))
        list(data.epoch(epoch, 4, seeded()))
    assert openings == [False]
