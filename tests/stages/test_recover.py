"""Recovery against the float64 loop of `reference_recover`, and what a kill may not change."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from scdd.augment import chance, random_resized_boxes
from scdd.bn_statistics import with_matched_statistics
from scdd.checkpoint import Checkpoint
from scdd.config.recover import RecoverConfig
from scdd.errors import RunError
from scdd.seeding import generator
from scdd.stages.recover import Batch, batches_of, random_view, recover
from tests.stages import reference_recover as reference
from tests.stages.conftest import CLASSES, CPU, MEAN, SIZE, STD, random_images

MakeTeacher = Callable[..., nn.Module]

VIEWS: dict[str, dict[str, Any]] = {
    "plain": {"crop": "none"},
    "rolled": {"crop": "none", "roll": 3},
    "one crop for the batch": {"crop": "batch", "crop_scale": (0.2, 1.0)},
    "a crop for each image": {"crop": "sample", "crop_scale": (0.08, 1.0)},
    "crop without flip": {"crop": "sample", "flip": False},
    "crop and roll": {"crop": "batch", "roll": 5},
}
views = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)


class Killed(Exception):
    """Stands for a kill."""


def settings(**changes: Any) -> RecoverConfig:
    base: dict[str, Any] = {"iterations": 12, "lr": 0.1, "alpha": 0.05, "crop": "none"}
    return RecoverConfig(**(base | changes))


def batch_of(count: int, index: int = 0, start: Tensor | None = None) -> Batch:
    return Batch(index, torch.arange(count) % CLASSES, start)


def replay(cfg: RecoverConfig, count: int, draw: torch.Generator, steps: int) -> list:
    """The views that the loop draws: boxes, flips, shift, in this order, each iteration."""
    shown = []
    for _ in range(steps):
        boxes, flips, roll = [], [], (0, 0)
        if cfg.crop != "none":
            number = count if cfg.crop == "sample" else 1
            boxes = random_resized_boxes(number, SIZE, SIZE, cfg.crop_scale, draw).tolist()
            flips = chance(number, 0.5 if cfg.flip else 0.0, draw).tolist()
        if cfg.roll:
            roll = tuple(torch.randint(cfg.roll + 1, (2,), generator=draw).tolist())
        shown.append(reference.View(boxes, flips, roll))
    return shown


def run_until(
    path: Path, cfg: RecoverConfig, teacher: nn.Module, batch: Batch, kill_at: int = 0
) -> Tensor:
    """Recover with a checkpoint after every iteration; raise in iteration `kill_at`."""
    done = 0

    def advance(note: str) -> None:
        nonlocal done
        done += 1
        if done == kill_at:
            raise Killed

    return recover(cfg, teacher, batch, SIZE, MEAN, STD, 0, CPU, Checkpoint(path, 0), advance)


def limits() -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    return -mean / std, (1 - mean) / std


def error(found: Tensor, truth: Tensor) -> float:
    return ((found.double() - truth).norm() / truth.norm()).item()


@views
def test_losses_and_image_gradient_are_those_of_the_float64_reference(
    view: dict[str, Any], make_teacher: MakeTeacher
):
    cfg, teacher = settings(**view), make_teacher()
    count = 6
    labels = batch_of(count).labels
    x = torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    shown = replay(cfg, count, generator(1, "view"), 1)[0]

    truth_x = x.double().requires_grad_(True)
    net = copy.deepcopy(teacher).double()
    truth_class, truth_matching = reference.losses(
        net, reference.render(truth_x, shown), labels, 10
    )
    (truth,) = torch.autograd.grad(truth_class + 0.3 * truth_matching, truth_x)

    x.requires_grad_(True)
    logits, matching = with_matched_statistics(teacher, 10)(
        random_view(x, cfg, generator(1, "view"))
    )
    class_loss = F.cross_entropy(logits, labels)
    (class_loss + 0.3 * matching).backward()
    assert class_loss.item() == pytest.approx(truth_class.item(), rel=1e-5)
    assert matching.item() == pytest.approx(truth_matching.item(), rel=1e-5)
    assert x.grad is not None and error(x.grad, truth) < 1e-5


@views
@pytest.mark.parametrize(
    "adam", [{}, {"betas": (0.9, 0.99), "weight_decay": 0.05, "first_bn_multiplier": 3.0}]
)
def test_the_loop_follows_the_float64_reference(
    view: dict[str, Any], adam: dict[str, Any], tmp_path: Path, make_teacher: MakeTeacher
):
    cfg, teacher, count, steps = settings(**view, **adam), make_teacher(), 4, 6
    path = tmp_path / "c.pt"
    with pytest.raises(Killed):
        run_until(path, cfg, teacher, batch_of(count), kill_at=steps + 1)
    state = Checkpoint(path, 0).load()
    assert state is not None and state["step"] == steps

    draw = generator(0, "recover", 0)
    noise = torch.randn(count, 3, SIZE, SIZE, generator=draw).double()
    low, high = limits()
    truth, _ = reference.recover(
        copy.deepcopy(teacher).double(),
        noise,
        batch_of(count).labels,
        replay(cfg, count, draw, steps),
        total=cfg.iterations,
        lr=cfg.lr,
        betas=cfg.betas,
        weight_decay=cfg.weight_decay,
        alpha=cfg.alpha,
        first=cfg.first_bn_multiplier,
        low=low,
        high=high,
    )
    # Adam divides by the size of the gradient, so where that is tiny float32 may turn its sign.
    assert error(state["images"] - noise, truth - noise) < 1e-3


def test_the_result_is_the_last_iterate_rounded_and_the_logged_losses_are_those_of_the_reference(
    make_teacher: MakeTeacher,
):
    cfg, teacher, count = settings(iterations=5, crop="sample"), make_teacher(), 4
    lines: list[dict[str, Any]] = []
    images = recover(
        cfg, teacher, batch_of(count), SIZE, MEAN, STD, 0, CPU, log=lambda **v: lines.append(v)
    )
    draw = generator(0, "recover", 0)
    noise = torch.randn(count, 3, SIZE, SIZE, generator=draw).double()
    low, high = limits()
    truth, history = reference.recover(
        copy.deepcopy(teacher).double(),
        noise,
        batch_of(count).labels,
        replay(cfg, count, draw, 5),
        total=5,
        lr=cfg.lr,
        betas=cfg.betas,
        weight_decay=0,
        alpha=cfg.alpha,
        first=10,
        low=low,
        high=high,
    )
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    exact = (truth * std + mean) * 255
    assert images.dtype == torch.uint8 and images.shape == (count, 3, SIZE, SIZE)
    off = (images.double() - exact).abs()
    assert off.max() < 1 and (off <= 0.501).double().mean() > 0.99  # truncating would give 0.5
    assert len(lines) == 1 and lines[0]["batch"] == 0 and lines[0]["iteration"] == 5
    assert lines[0]["class_loss"] == pytest.approx(history[-1][0], rel=1e-3)
    assert lines[0]["matching_loss"] == pytest.approx(history[-1][1], rel=1e-3)


def test_every_iterate_stays_within_black_and_white(tmp_path: Path, make_teacher: MakeTeacher):
    path, cfg = tmp_path / "c.pt", settings(lr=5.0, iterations=4)
    low, high = (edge.float() for edge in limits())
    for step in range(1, 4):
        with pytest.raises(Killed):
            run_until(path, cfg, make_teacher(), batch_of(4), kill_at=2)
        state = Checkpoint(path, 0).load()
        assert state is not None and state["step"] == step
        x = state["images"]
        assert (x >= low - 1e-6).all() and (x <= high + 1e-6).all()
        assert torch.isclose(x, low).any() and torch.isclose(x, high).any()


@given(st.integers(1, 7), st.integers(0, 2**31))
def test_a_roll_is_between_nothing_and_its_limit_on_both_axes(roll: int, seed: int):
    cfg = settings(roll=roll)
    marked = torch.zeros(2, 1, SIZE, SIZE)
    marked[:, :, 0, 0] = 1
    draw = torch.Generator().manual_seed(seed)
    for _ in range(5):
        shown = random_view(marked, cfg, draw)
        places = shown.nonzero()
        assert len(places) == 2 and (places[:, 2:] == places[0, 2:]).all()
        assert (places[:, 2:] <= roll).all()


def test_every_shift_up_to_the_limit_occurs():
    marked = torch.zeros(1, 1, SIZE, SIZE)
    marked[..., 0, 0] = 1
    draw = torch.Generator().manual_seed(0)
    shifts = {
        tuple(random_view(marked, settings(roll=2), draw).nonzero()[0, 2:].tolist())
        for _ in range(200)
    }
    assert shifts == {(down, right) for down in range(3) for right in range(3)}


def test_one_box_serves_the_batch_or_each_image_has_its_own():
    images = torch.rand(1, 3, SIZE, SIZE).expand(16, -1, -1, -1)
    for _ in range(3):
        together = random_view(images, settings(crop="batch"), torch.Generator().manual_seed(1))
        assert all(torch.equal(image, together[0]) for image in together)
    apart = random_view(images, settings(crop="sample"), torch.Generator().manual_seed(1))
    assert len({image.numpy().tobytes() for image in apart}) == 16


def test_without_flip_left_stays_left():
    ramp = torch.arange(float(SIZE)).expand(32, 3, SIZE, SIZE)
    cfg = settings(crop="sample", crop_scale=(0.5, 1.0))
    draw = torch.Generator().manual_seed(0)
    rising = random_view(ramp, cfg.model_copy(update={"flip": False}), draw).diff(dim=3)
    assert (rising >= -1e-5).all()
    mirrored = (random_view(ramp, cfg, draw).diff(dim=3).sum(dim=(1, 2, 3)) < 0).double().mean()
    assert 0.2 < mirrored < 0.8


@pytest.mark.parametrize("kill_at", [1, 5, 12])
@pytest.mark.parametrize("start", ["noise", "real"])
def test_killed_at_any_iteration_it_goes_on_to_bit_identical_images(
    kill_at: int, start: str, tmp_path: Path, make_teacher: MakeTeacher
):
    cfg, teacher = settings(crop="sample", roll=2, weight_decay=0.01), make_teacher()
    batch = batch_of(5, 3, random_images(5) if start == "real" else None)
    whole = recover(cfg, teacher, batch, SIZE, MEAN, STD, 0, CPU)
    path = tmp_path / "c.pt"
    with pytest.raises(Killed):
        run_until(path, cfg, teacher, batch, kill_at)
    assert path.exists() is (kill_at > 1)
    assert torch.equal(run_until(path, cfg, teacher, batch), whole)


def test_killed_again_and_again_it_still_ends_the_same(tmp_path: Path, make_teacher: MakeTeacher):
    cfg, teacher, path = settings(crop="batch"), make_teacher(), tmp_path / "c.pt"
    whole = recover(cfg, teacher, batch_of(4), SIZE, MEAN, STD, 0, CPU)
    for _ in range(5):
        with pytest.raises(Killed):
            run_until(path, cfg, teacher, batch_of(4), kill_at=3)
    assert torch.equal(run_until(path, cfg, teacher, batch_of(4)), whole)


def test_seed_and_batch_number_decide_the_images_and_nothing_else_does(make_teacher: MakeTeacher):
    cfg, teacher = settings(crop="sample"), make_teacher()

    def images(index: int, seed: int) -> bytes:
        torch.manual_seed(torch.seed())
        found = recover(cfg, teacher, batch_of(4, index), SIZE, MEAN, STD, seed, CPU)
        return found.numpy().tobytes()

    assert images(0, 0) == images(0, 0)
    assert len({images(0, 0), images(1, 0), images(0, 1), images(1, 1)}) == 4


def test_the_teacher_is_left_as_it_was(make_teacher: MakeTeacher):
    teacher = make_teacher().train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    recover(settings(iterations=2), teacher, batch_of(4), SIZE, MEAN, STD, 0, CPU)
    assert teacher.training
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_class_loss_falls(make_teacher: MakeTeacher):
    lines: list[dict[str, Any]] = []
    for iterations in (1, 60):
        cfg = settings(iterations=iterations, alpha=0.01)
        recover(
            cfg,
            make_teacher(),
            batch_of(8),
            SIZE,
            MEAN,
            STD,
            0,
            CPU,
            log=lambda **v: lines.append(v),
        )
    assert lines[-1]["iteration"] == 60 and lines[1]["iteration"] == 50
    assert lines[-1]["class_loss"] < 0.5 * lines[0]["class_loss"]


def test_divergence_is_one_sentence_saying_what_to_lower(make_teacher: MakeTeacher):
    teacher = make_teacher()
    teacher.get_parameter("fc.weight").mul_(1e30)
    with pytest.raises(RunError) as caught:
        recover(settings(alpha=1e38), teacher, batch_of(4, 2), SIZE, MEAN, STD, 0, CPU)
    assert str(caught.value).startswith("recover: batch 3 diverged at iteration 12 ")
    assert str(caught.value).endswith(
        "lower recover.lr or recover.alpha and run again with --redo recover"
    )


def test_a_teacher_without_batch_norm_is_refused(make_teacher: MakeTeacher):
    with pytest.raises(ValueError, match="has no BatchNorm2d layer, so its statistics cannot be"):
        recover(settings(), make_teacher("vit_tiny"), batch_of(4), SIZE, MEAN, STD, 0, CPU)


def test_real_images_are_where_it_starts(tmp_path: Path, make_teacher: MakeTeacher):
    start, path = random_images(4), tmp_path / "c.pt"
    cfg = settings(lr=1e-9, iterations=2)
    found = run_until(path, cfg, make_teacher(), batch_of(4, 0, start))
    assert torch.equal(found, start)


@given(st.integers(1, 6), st.integers(1, 7), st.integers(1, 20))
def test_batches_are_consecutive_rows_of_rank_major_order(ipc: int, classes: int, size: int):
    start = torch.arange(ipc * classes, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    for images in (None, start):
        batches = batches_of(ipc, classes, size, images)
        assert [batch.index for batch in batches] == list(range(len(batches)))
        labels = [label for batch in batches for label in batch.labels.tolist()]
        assert labels == [row % classes for row in range(ipc * classes)]
        assert all(len(batch.labels) == size for batch in batches[:-1])
        starts = [batch.start for batch in batches if batch.start is not None]
        assert len(starts) == (0 if images is None else len(batches))
        if images is not None:
            assert torch.equal(torch.cat(starts), images)
            assert [len(part) for part in starts] == [len(batch.labels) for batch in batches]
