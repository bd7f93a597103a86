"""Post-train: a student learns from the distilled file alone (SC-DD, section 2.4)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.posttrain import PosttrainConfig
from scdd.distilled import Batch, DistilledDataset
from scdd.errors import ConfigError, FormatError, RunError
from scdd.models import create_model
from scdd.seeding import generator, seeded
from scdd.training import cosine, fitting_threads, make_optimizer, set_lr

Labels = Literal["soft", "hard"]


def open_for_training(
    path: Path, kinds: Sequence[Labels], batch: int, device: torch.device
) -> DistilledDataset:
    """Open a distilled file and refuse, before any training, what it cannot serve.

    Raises:
        FormatError: if the file cannot be used or lacks soft labels that are wanted.
        ConfigError: if the batch does not fit the groups of the stored views.
    """
    data = DistilledDataset.open(path, device)
    if "soft" in kinds and not data.has_soft_labels:
        raise FormatError(f"{path}: holds no soft labels; train with --labels hard")
    try:
        data.steps(batch)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; use --set batch=N") from error
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
    after_backward: Callable[[], None] = lambda: None,
    after_epoch: Callable[[int, nn.Module], None] = lambda epoch, scored: None,
) -> nn.Module:
    """Train `student` in place for `cfg.epochs` passes over `data`, one stored view a pass.

    With `cfg.ema` the student ends with the moving average of its weights.

    Args:
        labels: `soft` matches the stored logits, `hard` the class labels, on the same views.
        seed: decides the order of the images and dropout.
        after_backward: called between the backward pass and the step, to add to gradients.
        after_epoch: called with the number of finished epochs and the network to score: the
            student, or the average of its weights.

    Raises:
        RunError: if the loss stops being finite.
    """
    student.to(device).train()
    optimizer = make_optimizer(student, cfg, decay_all=cfg.decay == "all")
    steps_per_epoch = data.steps(cfg.batch)
    parts: dict[str, Any] = {"student": student, "optimizer": optimizer}
    average = None
    if cfg.ema:
        average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(cfg.ema))
        parts["average"] = average
    step = _restore(checkpoint.load(), parts)
    loss = torch.zeros((), device=device)
    example = torch.empty(cfg.batch, 3, data.image_size, data.image_size, device=device)
    with fitting_threads(student, example, passes=3):
        while step < cfg.epochs * steps_per_epoch:
            epoch, skip = divmod(step, steps_per_epoch)
            order = generator(seed, "posttrain.order", epoch)
            for batch in data.epoch(epoch, cfg.batch, order, skip=skip):
                set_lr(optimizer, learning_rate(cfg, step, steps_per_epoch))
                with seeded(seed, "posttrain.dropout", step):
                    logits = student(batch.images)
                soft = labels == "soft"
                loss = soft_loss(cfg, logits, batch) if soft else hard_loss(logits, batch)
                optimizer.zero_grad()
                loss.backward()
                after_backward()
                optimizer.step()
                if average:
                    average.update_parameters(student)
                step += 1
                if checkpoint.due:
                    checkpoint.save(_state(step, parts))
            if not torch.isfinite(loss):
                raise RunError(
                    f"posttrain: the loss of {cfg.arch} is {loss.item()} in epoch {epoch + 1}; "
                    f"lower its learning rate (now {cfg.lr})"
                )
            advance(f"{cfg.arch} {labels}")
            after_epoch(epoch + 1, average.module if average else student)
    if average:
        student.load_state_dict(average.module.state_dict())
    return student


def soft_loss(cfg: PosttrainConfig, logits: Tensor, batch: Batch) -> Tensor:
    """KL divergence [] from the softened teacher to the softened student, mean over the batch."""
    assert batch.logits is not None
    student = F.log_softmax(logits.float() / cfg.temperature, dim=1)
    teacher = F.log_softmax(batch.logits.float() / cfg.temperature, dim=1)
    loss = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return loss * cfg.temperature**2 if cfg.scale_loss else loss


def hard_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy [] with the class labels, shared with the partner's where images are mixed."""
    own = F.cross_entropy(logits.float(), batch.labels, reduction="none")
    other = F.cross_entropy(logits.float(), batch.partner_labels, reduction="none")
    return (batch.label_weight * own + (1 - batch.label_weight) * other).mean()


def learning_rate(cfg: PosttrainConfig, step: int, steps_per_epoch: int) -> float:
    """The rate of a step, counted from 0 over the whole training."""
    done = step if cfg.schedule == "step" else step - step % steps_per_epoch
    warmup = cfg.warmup_epochs / cfg.epochs
    return cfg.lr * cosine(done / (cfg.epochs * steps_per_epoch), warmup, cfg.stretch)


def _state(step: int, parts: dict[str, Any]) -> dict[str, Any]:
    return {"step": step, **{name: part.state_dict() for name, part in parts.items()}}


def _restore(state: dict[str, Any] | None, parts: dict[str, Any]) -> int:
    """Set what is trained back to a checkpoint, if there is one; return the steps done."""
    if state is None:
        return 0
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])
