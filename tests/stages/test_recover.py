"""Recovery against the float64 loop of `reference_recover`, and what a kill may not change."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from scdd.augment import chance, random_resized_boxes
from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.recover import RecoverConfig
from scdd.errors import RunError
from scdd.recovery import RecoveryLoss
from scdd.seeding import generator
from scdd.stages.recover import Batch, batches_of, groups_of, recover
from tests.stages import reference_recover as reference
from tests.stages.conftest import CPU, MEAN, SIZE, STD, random_images
from tests.stages.small_recovery import VIEWS, Killed, batch_of, settings

MakeTeacher = Callable[..., nn.Module]

views = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)


def recovered(
    cfg: RecoverConfig,
    teacher: nn.Module | Sequence[nn.Module],
    *group: Batch,
    seed: int = 0,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    advance: Callable[[str], None] = lambda note: None,
    log: Callable[..., None] = lambda **values: None,
) -> Tensor:
    """Recover a group, eager on the CPU."""
    teachers = [teacher] if isinstance(teacher, nn.Module) else teacher
    losses = [RecoveryLoss(each, cfg, len(group), False) for each in teachers]
    return recover(cfg, losses, group, SIZE, MEAN, STD, seed, CPU, checkpoint, advance, log)


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
    path: Path,
    cfg: RecoverConfig,
    teacher: nn.Module | Sequence[nn.Module],
    *group: Batch,
    kill_at: int = 0,
) -> Tensor:
    """Recover with a checkpoint after every iteration; raise in iteration `kill_at`."""
    done = 0

    def advance(note: str) -> None:
        nonlocal done
        done += 1
        if done == kill_at:
            raise Killed

    return recovered(cfg, teacher, *group, checkpoint=Checkpoint(path, 0), advance=advance)


def limits() -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    return -mean / std, (1 - mean) / std


def error(found: Tensor, truth: Tensor) -> float:
    return ((found.double() - truth).norm() / truth.norm()).item()


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
    images = recovered(cfg, teacher, batch_of(count), log=lambda **v: lines.append(v))
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
    logged = {line["iteration"]: line for line in lines if "batch" in line}
    assert list(logged) == [1, 2, 5] and len(lines) == 6
    for iteration, line in logged.items():
        class_loss, matching_loss = history[iteration - 1]
        assert line["batch"] == 0
        assert line["class_loss"] == pytest.approx(class_loss, rel=1e-3)
        assert line["matching_loss"] == pytest.approx(matching_loss, rel=1e-3)


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


@pytest.mark.parametrize("kill_at", [1, 5, 12])
@pytest.mark.parametrize("start", ["noise", "real"])
def test_killed_at_any_iteration_it_goes_on_to_bit_identical_images(
    kill_at: int, start: str, tmp_path: Path, make_teacher: MakeTeacher
):
    cfg, teacher = settings(crop="sample", roll=2, weight_decay=0.01), make_teacher()
    batch = batch_of(5, 3, random_images(5) if start == "real" else None)
    whole = recovered(cfg, teacher, batch)
    path = tmp_path / "c.pt"
    with pytest.raises(Killed):
        run_until(path, cfg, teacher, batch, kill_at=kill_at)
    assert path.exists() is (kill_at > 1)
    assert torch.equal(run_until(path, cfg, teacher, batch), whole)


def test_killed_again_and_again_it_still_ends_the_same(tmp_path: Path, make_teacher: MakeTeacher):
    cfg, teacher, path = settings(crop="batch"), make_teacher(), tmp_path / "c.pt"
    whole = recovered(cfg, teacher, batch_of(4))
    for _ in range(5):
        with pytest.raises(Killed):
            run_until(path, cfg, teacher, batch_of(4), kill_at=3)
    assert torch.equal(run_until(path, cfg, teacher, batch_of(4)), whole)


def test_seed_and_batch_number_decide_the_images_and_nothing_else_does(make_teacher: MakeTeacher):
    cfg, teacher = settings(crop="sample"), make_teacher()

    def images(index: int, seed: int) -> bytes:
        torch.manual_seed(torch.seed())
        found = recovered(cfg, teacher, batch_of(4, index), seed=seed)
        return found.numpy().tobytes()

    assert images(0, 0) == images(0, 0)
    assert len({images(0, 0), images(1, 0), images(0, 1), images(1, 1)}) == 4


def test_the_teacher_is_left_as_it_was(make_teacher: MakeTeacher):
    teacher = make_teacher().train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    recovered(settings(iterations=2), teacher, batch_of(4))
    assert teacher.training
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_class_loss_falls(make_teacher: MakeTeacher):
    lines: list[dict[str, Any]] = []
    cfg = settings(iterations=60, alpha=0.01)
    recovered(cfg, make_teacher(), batch_of(8), log=lambda **v: lines.append(v))
    lines = [line for line in lines if "batch" in line]
    assert [line["iteration"] for line in lines] == [1, 2, 5, 10, 20, 50, 60]
    assert lines[-1]["class_loss"] < 0.5 * lines[0]["class_loss"]


def test_divergence_is_one_sentence_saying_what_to_lower(make_teacher: MakeTeacher):
    teacher = make_teacher()
    teacher.get_parameter("fc.weight").mul_(1e30)
    with pytest.raises(RunError) as caught:
        recovered(settings(alpha=1e38), teacher, batch_of(4, 2))
    assert str(caught.value).startswith("recover: batch 3 diverged at iteration 2 (class loss")
    assert str(caught.value).endswith(
        "lower recover.lr or recover.alpha and run again with --redo recover"
    )


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"alpha": 1e38, "iterations": 1}, "ends with pixels that are no numbers"),
        ({"weight_decay": 1e30}, "has not moved from its start"),
        ({"lr": 1e30, "crop": "none"}, "ends with every pixel at the end of its range"),
    ],
)
def test_images_that_no_loss_tells_of_are_refused(
    make_teacher: MakeTeacher, changes: dict[str, Any], found: str
):
    with pytest.raises(RunError) as caught:
        recovered(settings(**changes), make_teacher(), batch_of(4, 2))
    assert str(caught.value).startswith(f"recover: batch 3 {found}")
    assert str(caught.value).endswith("run again with --redo recover")


def test_a_teacher_without_batch_norm_is_refused(make_teacher: MakeTeacher):
    with pytest.raises(ValueError, match="has no BatchNorm layer, so its statistics cannot be"):
        recovered(settings(), make_teacher("vit_tiny"), batch_of(4))


def test_real_images_are_where_it_starts(tmp_path: Path, make_teacher: MakeTeacher):
    start, path = random_images(4), tmp_path / "c.pt"
    cfg = settings(lr=1e-9, iterations=2)
    found = run_until(path, cfg, make_teacher(), batch_of(4, 0, start))
    assert torch.equal(found, start)


@given(st.integers(1, 6), st.integers(1, 7), st.integers(1, 20), st.booleans())
def test_batches_hold_every_row_of_the_rank_major_order_once(
    ipc: int, classes: int, size: int, shuffled: bool
):
    cfg = settings(batch=size, order="shuffled" if shuffled else "consecutive")
    batches = batches_of(cfg, ipc, classes, 0)
    assert [batch.index for batch in batches] == list(range(len(batches)))
    assert all(len(batch.rows) == size for batch in batches[:-1])
    rows = torch.cat([batch.rows for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    assert torch.equal(labels, rows % classes)
    # Shuffled or not, a rank is over before the next begins.
    assert torch.equal(rows // classes, torch.arange(ipc).repeat_interleave(classes))
    assert sorted(rows.tolist()) == list(range(ipc * classes))
    if not shuffled:
        assert rows.tolist() == sorted(rows.tolist())


def test_shuffled_batches_hold_other_classes_in_every_rank_and_the_same_in_every_run():
    cfg = settings(batch=5, order="shuffled")
    classes = [tuple(batch.labels.tolist()) for batch in batches_of(cfg, 20, 10, 0)]
    assert len(set(classes)) == len(classes)
    assert classes == [tuple(batch.labels.tolist()) for batch in batches_of(cfg, 20, 10, 0)]
    assert classes != [tuple(batch.labels.tolist()) for batch in batches_of(cfg, 20, 10, 1)]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 12))
def test_groups_keep_the_order_and_hold_batches_of_one_size(rows: int, size: int, most: int):
    batches = batches_of(settings(batch=size), rows, 1, 0)
    groups = groups_of(batches, most)
    assert [batch.index for group in groups for batch in group] == list(range(len(batches)))
    assert all(len({len(batch.rows) for batch in group}) == 1 for group in groups)
    assert all(len(group) == most for group in groups[:-2])
    assert max(map(len, groups)) <= most
