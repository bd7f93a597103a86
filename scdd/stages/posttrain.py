"""Post-train: a student learns from the distilled file alone (SC-DD, section 2.4)."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.posttrain import PosttrainConfig
from scdd.distilled import DistilledDataset
from scdd.distributed import rank_and_size
from scdd.errors import ConfigError, FormatError, RunError
from scdd.models import create_model
from scdd.posttraining import Labels, learning_rate, step_batches, steps_per_epoch, student_step
from scdd.posttraining.average import follow, take_buffers
from scdd.posttraining.capture import can_capture, captured, make_capturable
from scdd.seeding import generator, seeded
from scdd.synced_batchnorm import synced
from scdd.training import fitting_threads, make_optimizer, set_lr


def open_for_training(
    path: Path, kinds: Sequence[Labels], cfg: PosttrainConfig, device: torch.device
) -> DistilledDataset:
    """Open a distilled file and refuse, before any training, what it cannot serve.

    Raises:
        FormatError: if the file cannot be used or lacks soft labels or classes that are wanted.
        ConfigError: if the batch does not fit the groups of the stored views.
    """
    data = DistilledDataset.open(path, device)
    if "soft" in kinds and data.header.target_kind == "none":
        raise FormatError(f"{path}: holds no soft labels; train with --labels hard")
    if "soft" in kinds:
        data.check_soft_labels()
    classes = "hard" in kinds or ("soft" in kinds and cfg.hard_weight > 0)
    if classes and bool((data.labels < 0).any()):
        remedy = "train with --labels soft" if "hard" in kinds else "use --set hard_weight=0"
        raise FormatError(f"{path}: holds images of no class, so it cannot teach any; {remedy}")
    try:
        steps_per_epoch(cfg, data)
    except ValueError as error:
        parts = f" in each of {cfg.micro_batches} micro-batches" if cfg.micro_batches > 1 else ""
        raise ConfigError(f"{path}: {error}{parts}; use --set batch=N") from error
    return data


def new_student(arch: str, data: DistilledDataset, seed: int) -> nn.Module:
    """Initialise a student of the file's classes and image size; `seed` decides its weights."""
    with seeded(seed, "posttrain.init"):
        return create_model(arch, len(data.classes), data.image_size)


def train_student(
    cfg: PosttrainConfig,
    student: nn.Module,
    data: DistilledDataset,
    labels: Labels,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    advance: Callable[[str], None] = lambda note: None,
    after_backward: Callable[[], None] | None = None,
    after_epoch: Callable[[int, nn.Module], None] = lambda epoch, scored: None,
    together: bool = False,
) -> nn.Module:
    """Train `student` in place for `cfg.epochs` passes over `data`, one stored view a pass.

    With `cfg.ema` the student ends with the moving average of its weights.

    Args:
        labels: `soft` matches the stored logits, `hard` the class labels, on the same views.
        seed: decides the order of the images and dropout.
        after_backward: called between the backward pass and the step, to add to gradients.
        after_epoch: called with the number of finished epochs and the network to score: the
            student, or the average of its weights.
        together: all processes train this student, each on its part of every batch; it becomes
            the one that a single process makes, up to rounding, and to dropout if it has any.

    Raises:
        RunError: if the loss stops being finite.
        ConfigError: if a CUDA graph is insisted on and cannot be made.
    """
    student.to(device).train()
    if together:
        synced(student)
    optimizer = make_optimizer(student, cfg, decay_all=cfg.decay == "all")
    parts = {"student": student, "optimizer": optimizer}
    average = copy.deepcopy(student) if cfg.ema else None
    if average is not None:
        parts["average"] = average
    done = checkpoint.restore(parts)
    each = steps_per_epoch(cfg, data)
    step = student_step(cfg, student, optimizer, labels, after_backward, together)
    example = torch.empty(cfg.micro_batch, 3, data.image_size, data.image_size, device=device)
    if can_capture(cfg, student, example[:2], together or after_backward is not None):
        make_capturable(optimizer, device)
        step = captured(step, insist=cfg.capture == "on")
    rank = rank_and_size()[:1] if together else ()
    loss = torch.zeros((), device=device)
    with fitting_threads(student, example, passes=3):
        while done < cfg.epochs * each:
            epoch, skip = divmod(done, each)
            order = generator(seed, "posttrain.order", epoch)
            for batches in step_batches(cfg, data, labels, epoch, order, skip):
                set_lr(optimizer, learning_rate(cfg, done, each))
                with seeded(seed, "posttrain.dropout", done, *rank):
                    loss = step(batches)
                if average is not None:
                    follow(average, student, cfg.ema if done else 0.0)
                done += 1
                if checkpoint.due:
                    checkpoint.save_parts(parts, done)
            if not torch.isfinite(loss):
                raise RunError(
                    f"posttrain: the loss of {cfg.arch} is {loss.item()} in epoch {epoch + 1}; "
                    f"lower its learning rate (now {cfg.lr})"
                )
            advance(f"{cfg.arch} {labels}")
            scored = student if average is None else take_buffers(average, student)
            after_epoch(epoch + 1, scored)
    if average is not None:
        student.load_state_dict(take_buffers(average, student).state_dict())
    return student
