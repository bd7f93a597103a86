"""What may vary in recovery: groups, merges with real images, schedules, the way it is saved."""

import copy
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from scdd.augment import normalise
from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.recover import RecoverConfig
from scdd.recovery import RecoveryLoss
from scdd.seeding import generator
from scdd.stages.recover import Batch, recover, to_bytes
from tests.stages import reference_recover as reference
from tests.stages.conftest import CPU, MEAN, SIZE, STD, random_images
from tests.stages.small_recovery import PLAIN, batch_of, settings

MakeTeacher = Callable[..., nn.Module]


def recovered(
    cfg: RecoverConfig,
    teacher: nn.Module,
    group: Sequence[Batch],
    checkpoint: Checkpoint = NO_CHECKPOINT,
    log: Callable[..., None] = lambda **values: None,
    advance: Callable[[str], None] = lambda note: None,
) -> Tensor:
    losses = [RecoveryLoss(teacher, cfg, len(group), False)]
    return recover(cfg, losses, group, SIZE, MEAN, STD, 0, CPU, checkpoint, advance, log)


def last_iterate(path: Path, cfg: RecoverConfig, teacher: nn.Module, batch: Batch) -> Tensor:
    """What is saved after the last iteration, before it becomes bytes."""
    recovered(cfg, teacher, [batch], Checkpoint(path, 0))
    state = Checkpoint(path, 0).load()
    assert state is not None and state["step"] == cfg.iterations
    return state["images"]


def error(found: Tensor, truth: Tensor) -> float:
    return ((found.double() - truth.double()).norm() / truth.double().norm()).item()


@pytest.mark.parametrize("crop", ["none", "batch", "sample"])
def test_a_batch_becomes_the_same_in_every_group_but_for_rounding(
    crop: str, make_teacher: MakeTeacher
):
    cfg, teacher = settings(crop=crop, roll=2, iterations=20), make_teacher()
    batches = [batch_of(5, index) for index in range(3)]
    logged: dict[int, list[dict[str, Any]]] = {1: [], 3: []}
    alone = [
        recovered(cfg, teacher, [batch], log=lambda **v: logged[1].append(v)) for batch in batches
    ]
    together = recovered(cfg, teacher, batches, log=lambda **v: logged[3].append(v))
    # Adam divides by the size of the gradient, so where that is tiny rounding may turn its sign.
    off = (together.int() - torch.cat(alone).int()).abs()
    assert (off <= 1).double().mean() > 0.99
    losses = [
        {
            line["batch"]: (line["class_loss"], line["matching_loss"])
            for line in lines
            if "batch" in line
        }
        for lines in logged.values()
    ]
    assert losses[0].keys() == losses[1].keys() == {0, 1, 2}
    for index in range(3):
        assert losses[1][index] == pytest.approx(losses[0][index], rel=0.02)


def test_bf16_ends_with_the_losses_of_float32(make_teacher: MakeTeacher):
    cfg, teacher, group = settings(iterations=100), make_teacher(), [batch_of(32, 0)]
    ends = []
    for bf16 in (False, True):
        lines: list[dict[str, Any]] = []
        loss = RecoveryLoss(teacher, cfg, 1, bf16)
        recover(
            cfg,
            [loss],
            group,
            SIZE,
            MEAN,
            STD,
            0,
            CPU,
            log=lambda lines=lines, **values: lines.append(values),
        )
        last = next(line for line in reversed(lines) if "batch" in line)
        ends.append(last["class_loss"] + cfg.alpha * last["matching_loss"])
    assert ends[1] == pytest.approx(ends[0], rel=0.02)


def test_a_group_goes_on_to_bit_identical_images_from_every_iteration(
    tmp_path: Path, make_teacher: MakeTeacher
):
    cfg = settings(iterations=5, crop="sample", roll=1, learn_weights=True)
    teacher, group = make_teacher(), [batch_of(4, index) for index in (2, 5)]
    whole, path = recovered(cfg, teacher, group), tmp_path / "c.pt"

    def stop(note: str) -> None:
        assert note == "batch 3 to 6"
        raise KeyboardInterrupt

    for _ in range(cfg.iterations):
        done = 0

        def second(note: str) -> None:
            nonlocal done
            done += 1
            if done == 2:
                stop(note)

        try:
            found = recovered(cfg, teacher, group, Checkpoint(path, 0), advance=second)
        except KeyboardInterrupt:
            continue
    assert torch.equal(found, whole)


def test_merges_mix_in_the_images_of_the_start_and_restart_the_optimiser(
    tmp_path: Path, make_teacher: MakeTeacher
):
    start, teacher = random_images(4), make_teacher()
    cfg = settings(start="real", merges=1, merge_share=0.7, iterations=4)
    found = last_iterate(tmp_path / "c.pt", cfg, teacher, batch_of(4, 0, start))

    begun = normalise(start.double() / 255, MEAN, STD)
    low, high = (
        normalise(torch.full((1, 3, 1, 1), edge, dtype=torch.float64), MEAN, STD) for edge in (0, 1)
    )
    x = begun
    for half in range(2):
        x = 0.7 * x + 0.3 * begun if half else x
        # One call an optimiser; its rate follows the whole schedule of four iterations.
        x, _ = reference.recover(
            copy.deepcopy(teacher).double(),
            x,
            batch_of(4, 0).labels,
            [PLAIN, PLAIN],
            total=4,
            first_step=2 * half,
            lr=cfg.lr,
            betas=cfg.betas,
            weight_decay=0,
            alpha=cfg.alpha,
            first=10,
            low=low,
            high=high,
        )
    assert error(found - begun, x - begun) < 1e-3


@pytest.mark.parametrize(
    ("changes", "shares"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1]),
        ({"schedule": "constant", "warmup": 2}, [0, 0.5, 1, 1]),
        ({"warmup": 1}, [0, 1, 0.75, 0.25]),
    ],
)
def test_the_first_steps_of_adam_are_as_long_as_the_schedule_says(
    changes: dict[str, Any], shares: list[float], make_teacher: MakeTeacher, tmp_path: Path
):
    # With betas of 0 every step of Adam is as long as the rate in every pixel.
    cfg = settings(iterations=4, betas=(0.0, 0.0), lr=1e-3, **changes)
    path, steps = tmp_path / "c.pt", []
    before = torch.randn(4, 3, SIZE, SIZE, generator=generator(0, "recover", 0))
    low, high = (normalise(torch.full((1, 3, 1, 1), float(edge)), MEAN, STD) for edge in (0, 1))
    free = (before > low + 0.01) & (before < high - 0.01)

    def look(note: str) -> None:
        state = Checkpoint(path, 0).load()
        if state is not None:
            steps.append(state["images"].clone())

    recovered(cfg, make_teacher(), [batch_of(4, 0)], Checkpoint(path, 0), advance=look)
    state = Checkpoint(path, 0).load()
    assert state is not None
    for after, share in zip([*steps, state["images"]], shares, strict=True):
        moved = (after - before).abs()[free]
        assert moved.median().item() == pytest.approx(share * 1e-3, rel=1e-2, abs=1e-7)
        before = after


def test_alpha_goes_to_its_end_along_half_a_cosine(make_teacher: MakeTeacher):
    seen = []

    class Spy(RecoveryLoss):
        def forward(self, *args: Any) -> Any:
            seen.append(args[-1].item())
            return super().forward(*args)

    cfg = settings(iterations=4, alpha=0.4, alpha_end=0.1)
    spy = Spy(make_teacher(), cfg, 1, False)
    recover(cfg, [spy], [batch_of(2, 0)], SIZE, MEAN, STD, 0, CPU)
    halves = [0.5 * (1 + np.cos(np.pi * done / 4)) for done in range(4)]
    assert seen == pytest.approx([0.1 + 0.3 * half for half in halves])


def test_images_are_rounded_or_go_through_jpeg_as_the_papers_did():
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(to_bytes(pixels, "lossless"), (pixels * 255).round().to(torch.uint8))
    for found, image in zip(to_bytes(pixels, "jpeg75"), pixels, strict=True):
        file = io.BytesIO()
        cut = np.floor(image.permute(1, 2, 0).numpy() * np.float32(255)).astype(np.uint8)
        Image.fromarray(cut).save(file, format="JPEG")  # Pillow's default is quality 75.
        truth = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        assert torch.equal(found, truth)
