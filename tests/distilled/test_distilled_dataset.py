"""DistilledDataset: batches, subsets, and life across processes."""

import itertools
import multiprocessing
import os
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scdd.config.relabel import RelabelConfig
from scdd.distilled import Batch, DistilledDataset, render_views
from scdd.errors import FormatError
from tests.distilled.conftest import numbered, opened, seeded


def shown(batch: Batch, data: DistilledDataset) -> list[int]:
    """Which images a batch of constant images shows."""
    pixels = batch.images[:, 0, 0, 0] * data.std[0] + data.mean[0]
    return (255 * pixels).round().int().tolist()


@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
def test_a_batch_holds_the_view_the_labels_and_the_logits_of_the_same_images(
    content, tmp_path, mix: str
):
    made = content(RelabelConfig(mix=mix), views=3)
    data = opened(made, tmp_path)
    assert (len(data), data.num_views, data.image_size) == (6, 3, 8)
    assert data.classes == made.header.class_names and data.mean == made.header.mean
    for epoch in range(5):
        order = torch.randperm(6, generator=seeded(epoch))
        view = epoch % 3
        batches = list(data.epoch(epoch, 4, seeded(epoch)))
        for batch, index in zip(batches, order.split(4), strict=True):
            wanted = render_views(made.images, made.records, view, index)
            mean, std = torch.tensor(data.mean), torch.tensor(data.std)
            wanted = (wanted - mean[:, None, None]) / std[:, None, None]
            torch.testing.assert_close(batch.images, wanted)
            assert torch.equal(batch.logits, made.logits[view, index].half().float())
            assert torch.equal(batch.labels, made.labels[index])
            if mix != "none":
                partner = made.records.parameters["partner"][view, index].long()
                assert torch.equal(batch.partner_labels, made.labels[partner])
            else:
                assert torch.equal(batch.partner_labels, batch.labels)
                assert (batch.label_weight == 1).all()
            if mix == "mixup":
                share = made.records.parameters["lambda"][view, index]
                assert torch.equal(batch.label_weight, share)


@given(count=st.integers(1, 30), batch=st.integers(1, 12), skip=st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_an_epoch_shows_every_image_once_and_no_lonely_one(
    count, batch, skip, content, tmp_path_factory
):
    made = numbered(content(None, classes=1, ipc=count, size=1))
    data = opened(made, tmp_path_factory.mktemp("epoch"))
    batches = [shown(part, data) for part in data.epoch(0, batch, seeded())]
    assert sorted(itertools.chain(*batches)) == list(range(count))
    assert len(batches) == data.steps(batch)
    assert all(len(part) == batch for part in batches[:-2])
    assert min(map(len, batches)) >= min(2, batch, count)
    rest = [shown(part, data) for part in data.epoch(0, batch, seeded(), skip=skip)]
    assert rest == batches[skip:]


@given(
    count=st.integers(2, 40),
    size=st.integers(2, 8),
    more=st.integers(0, 12),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_grouped_labels_are_shown_in_whole_groups(
    count, size, more, seed, content, tmp_path_factory
):
    cfg = RelabelConfig(crop="none", flip=False, teacher_bn="batch", group=size)
    made = numbered(content(cfg, classes=1, ipc=count, size=1, views=2, seed=seed))
    data = opened(made, tmp_path_factory.mktemp("groups"))
    for view in range(2):
        group = made.records.parameters["group"][view]
        largest = int(group.bincount().max())
        batches = [shown(part, data) for part in data.epoch(view, largest + more, seeded(seed))]
        assert sorted(itertools.chain(*batches)) == list(range(count))
        assert len(batches) == data.steps(largest + more)
        assert max(map(len, batches)) <= largest + more
        for part in batches:
            members = torch.isin(group, group[part].unique()).nonzero().squeeze(1)
            assert sorted(part) == members.tolist()
        with pytest.raises(ValueError, match=f"at least {largest}"):
            data.epoch(view, largest - 1, seeded())


def test_the_order_is_the_generators(content, tmp_path):
    data = opened(numbered(content(None, ipc=20)), tmp_path)
    orders = [[shown(part, data) for part in data.epoch(0, 7, seeded(seed))] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_images_alone_are_shown_as_they_are(content, tmp_path):
    made = content(None)
    data = opened(made, tmp_path)
    assert data.num_views == 0 and not data.has_soft_labels and data.label_bytes == 0
    batch = next(data.epoch(3, 6, seeded()))
    order = torch.randperm(6, generator=seeded())
    pixels = batch.images * torch.tensor(data.std)[:, None, None]
    pixels = pixels + torch.tensor(data.mean)[:, None, None]
    torch.testing.assert_close(pixels, made.images[order].float() / 255)
    assert batch.logits is None and (batch.label_weight == 1).all()
    with pytest.raises(FormatError, match="the file has no soft labels; relabel it"):
        data.soft_labels(0)


def test_soft_labels_that_are_not_wanted_are_not_looked_for(content, tmp_path):
    data = opened(content(RelabelConfig(mix="cutmix"), views=2), tmp_path)
    wanted = list(data.epoch(1, 4, seeded()))
    data.path.unlink()  # Images and views are in memory, labels are not.
    for batch, same in zip(data.epoch(1, 4, seeded(), soft_labels=False), wanted, strict=True):
        assert batch.logits is None and same.logits is not None
        for name in ("images", "labels", "partner_labels", "label_weight"):
            assert torch.equal(getattr(batch, name), getattr(same, name))


def test_label_bytes_count_logits_and_records(content, tmp_path):
    data = opened(content(RelabelConfig(), classes=3, ipc=2, views=4), tmp_path)
    whole = 4 * (6 * (3 * 2 + 4 * 2) + 1)  # six flips fit in a byte
    assert data.label_bytes == whole
    assert data.subset(1).label_bytes == whole // 2


def test_a_subset_is_the_first_rows_with_their_labels(content, tmp_path):
    made = content(RelabelConfig(), classes=3, ipc=4)
    data = opened(made, tmp_path).subset(2)
    assert len(data) == 6 and data.header.ipc == 2 and data.has_soft_labels
    assert torch.equal(data.images, made.images[:6])
    assert torch.bincount(data.labels).tolist() == [2, 2, 2]
    assert torch.equal(data.soft_labels(1), made.logits[1, :6].half().float())
    batch = next(data.epoch(1, 6, seeded()))
    order = torch.randperm(6, generator=seeded())
    assert torch.equal(batch.logits, made.logits[1, order].half().float())
    assert len(data.subset(1)) == 3


@pytest.mark.parametrize(
    "change", [{"mix": "mixup"}, {"mix": "cutmix"}, {"teacher_bn": "batch", "group": 5}]
)
def test_a_subset_whose_partners_or_groups_lie_outside_has_no_soft_labels(
    content, tmp_path, change
):
    made = content(RelabelConfig(**change), classes=3, ipc=4)
    data = opened(made, tmp_path)
    assert data.has_soft_labels and data.subset(4).has_soft_labels
    part = data.subset(2)
    assert not part.has_soft_labels and part.label_bytes == 0
    with pytest.raises(FormatError, match=r"relabel for ipc 2$"):
        part.soft_labels(0)
    assert part.num_views == 4 and part.records.ops == ("crop", "flip")
    batch = next(part.epoch(0, 6, seeded()))
    assert batch.logits is None and torch.equal(batch.labels, batch.partner_labels)


def test_a_subset_with_its_own_partners_and_groups_keeps_its_soft_labels(content, tmp_path):
    made = content(RelabelConfig(mix="mixup", teacher_bn="batch", group=6), classes=3, ipc=4)
    made.records.parameters["partner"][:] = torch.arange(12).view(2, 6).flip(1).flatten()
    made.records.parameters["group"][:] = torch.arange(12) // 6
    data = opened(made, tmp_path).subset(2)
    assert data.has_soft_labels and data.records.mix == "mixup" and data.steps(6) == 1


def test_a_subset_that_cannot_be_is_refused(content, tmp_path):
    data = opened(content(), tmp_path)
    for ipc in (0, 3):
        with pytest.raises(FormatError, match="there are 2 images per class; ask for"):
            data.subset(ipc)
    (tmp_path / "other").mkdir()
    with pytest.raises(FormatError, match="no fixed number per class"):
        opened(content(ipc=None), tmp_path / "other").subset(1)


def test_a_file_replaced_meanwhile_is_noticed(content, tmp_path):
    data = opened(content(), tmp_path)
    content(seed=5).write(tmp_path / "distilled.h5")
    with pytest.raises(FormatError, match="changed since it was opened"):
        data.soft_labels(0)


def test_it_survives_pickling_without_the_cache(content, tmp_path):
    data = opened(content(), tmp_path)
    data.soft_labels(2)
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy.soft_labels(2), data.soft_labels(2))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_it_works_in_a_forked_process(content, tmp_path):
    made = content()
    data = opened(made, tmp_path)
    data.soft_labels(0)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=lambda: theirs.send(data.soft_labels(1).tolist()))
    child.start()
    assert ours.poll(60)
    assert ours.recv() == made.logits[1].half().float().tolist()
    child.join(60)
    assert child.exitcode == 0


def test_an_empty_batch_is_a_mistake_of_the_caller(content, tmp_path):
    with pytest.raises(ValueError, match="a batch of 0 images"):
        opened(content(), tmp_path).epoch(0, 0, seeded())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_same_batches_come_out(content, tmp_path):
    data = opened(content(RelabelConfig(mix="cutmix")), tmp_path)
    there = DistilledDataset.open(data.path, "cuda")
    for near, far in zip(data.epoch(1, 4, seeded()), there.epoch(1, 4, seeded()), strict=True):
        assert far.images.is_cuda and far.logits is not None and far.logits.is_cuda
        torch.testing.assert_close(near.images, far.images.cpu(), atol=1e-5, rtol=0)
        assert torch.equal(near.labels, far.labels.cpu())
        assert torch.equal(near.label_weight, far.label_weight.cpu())
