"""Labels of a network at hand: for the very views that are shown, and read from no file."""

from pathlib import Path

import torch
from torch import nn

from scdd.config.posttrain import PosttrainConfig
from scdd.distilled import DistilledDataset
from scdd.models import create_model
from scdd.stages.posttrain import train_student
from scdd_apps.prune.live_teacher import Taught
from tests.apps.conftest import write_file


def teacher() -> torch.nn.Module:
    torch.manual_seed(3)
    return create_model("resnet8", 3, 8).train()


def test_every_view_is_labelled_by_the_teacher_in_eval_mode(small_file: Path):
    plain, net = DistilledDataset.open(small_file), teacher()
    for epoch in range(4):
        shown = list(plain.epoch(epoch, 5, torch.Generator().manual_seed(epoch)))
        taught = list(Taught(plain, net).epoch(epoch, 5, torch.Generator().manual_seed(epoch)))
        assert len(shown) == len(taught) == 3
        for theirs, ours in zip(shown, taught, strict=True):
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.labels, theirs.labels)
            net.eval()
            with torch.no_grad():
                expected = net(theirs.images)
            net.train()
            assert ours.logits is not None and theirs.logits is not None
            assert torch.equal(ours.logits, expected) and not ours.logits.requires_grad
            assert not torch.equal(ours.logits, theirs.logits)
    assert net.training and all(p.grad is None for p in net.parameters())


def test_a_file_without_soft_labels_serves(tmp_path: Path):
    data = Taught(DistilledDataset.open(write_file(tmp_path / "x.h5", labelled=False)), teacher())
    assert data.steps(6) == 2
    batch = next(data.epoch(0, 6, torch.Generator()))
    assert batch.logits is not None and batch.logits.shape == (6, 3)


def test_a_student_comes_to_answer_as_the_teacher_does(small_file: Path):
    net = teacher()
    net.get_submodule("fc").weight.data *= 5  # an opinion that is worth learning
    data = Taught(DistilledDataset.open(small_file), net)
    torch.manual_seed(4)
    student = create_model("resnet8", 3, 8)
    views = [batch for epoch in range(3) for batch in data.epoch(epoch, 12, torch.Generator())]

    def disagreement() -> float:
        student.eval()
        with torch.no_grad():
            return sum(
                nn.functional.kl_div(
                    student(batch.images).log_softmax(1),
                    batch.logits.log_softmax(1),
                    reduction="batchmean",
                    log_target=True,
                ).item()
                for batch in views
                if batch.logits is not None
            )

    before = disagreement()
    cfg = PosttrainConfig(lr=0.01, epochs=40, batch=12, temperature=1)
    train_student(cfg, student, data, "soft", 0, torch.device("cpu"))
    assert disagreement() < before / 4
