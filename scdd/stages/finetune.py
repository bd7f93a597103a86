"""Fine-tune: a network as it was pre-trained, and a new classifier, learn a task from real images.

The second evaluation of KRR-ST (arXiv:2310.06511, section 4): all weights are trained, so that with
a network as it was initialised this is training from scratch.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.augment import chance, normalise, shifted
from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.finetune import FinetuneConfig
from scdd.datasets.sources import ImageSource
from scdd.errors import RunError
from scdd.seeding import generator, seeded
from scdd.training import cosine, fitting_threads, set_lr, shuffled_batches

TUNED = "fine-tuning"
"""What such a score is called in every table."""


def new_classifier(trunk: nn.Module, classes: int, seed: int) -> nn.Sequential:
    """Put a new linear `head` on a copy of `trunk`, which stays as it is."""
    with seeded(seed, "finetune.init"):
        head = nn.Linear(int(trunk.feature_dim), classes)  # type: ignore[arg-type]
    return nn.Sequential(OrderedDict(trunk=copy.deepcopy(trunk), head=head))


def finetune(
    cfg: FinetuneConfig,
    trunk: nn.Module,
    train: ImageSource,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    advance: Callable[[str], None] = lambda note: None,
) -> nn.Sequential:
    """Train a copy of `trunk` and a new classifier on crops of `train`; return both, in eval mode.

    Args:
        cfg: the settings.
        trunk: images [B, 3, S, S], normalised, to features [B, feature_dim].
        train: the real images of a task.
        seed: decides the classifier, the order of the images, their crops, and dropout.
        device: where to compute.
        checkpoint: the state of the training.
        advance: called after each step with a word on where it stands.

    Raises:
        RunError: if the loss stops being finite.
    """
    net = new_classifier(trunk, len(train.classes), seed).to(device).train()
    optimizer = torch.optim.SGD(
        net.parameters(), lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay
    )
    parts = {"net": net, "optimizer": optimizer}
    done = checkpoint.restore(parts)
    batch = min(cfg.batch, len(train))
    size = train.read(torch.tensor([0])).shape[-1]
    with fitting_threads(net, torch.empty(batch, 3, size, size, device=device), passes=3):
        steps = shuffled_batches(len(train), batch, cfg.iterations, seed, "finetune.order", done)
        for rows in steps:
            set_lr(optimizer, cfg.lr * cosine(done / cfg.iterations))
            images = _views(cfg, train, rows, generator(seed, "finetune.views", done), device)
            with seeded(seed, "finetune.dropout", done):
                loss = F.cross_entropy(net(images), train.labels[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            save = checkpoint.due
            look = save or done == cfg.iterations or done % (len(train) // batch) == 0
            if look and not torch.isfinite(loss):
                raise RunError(
                    f"finetune: the loss is {loss.item()} in step {done}; lower the learning rate "
                    f"of fine-tuning (now {cfg.lr:g})"
                )
            advance(f"fine-tuning step {done}/{cfg.iterations}")
            if save:
                checkpoint.save_parts(parts, done)
    seen = train.read(torch.arange(batch)).to(device).float() / 255
    with torch.no_grad():
        if not bool(net.eval()(normalise(seen, train.mean, train.std)).isfinite().all()):
            raise RunError(
                "finetune: after the last step the outputs of the network are no numbers; lower "
                f"the learning rate of fine-tuning (now {cfg.lr:g})"
            )
    return net


def _views(
    cfg: FinetuneConfig,
    source: ImageSource,
    rows: Tensor,
    draw: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Normalised images [b, 3, S, S] of some rows, each shifted and perhaps mirrored."""
    images, reach = source.read(rows).to(device).float() / 255, cfg.crop_padding
    corners = torch.randint(-reach, reach + 1, (len(rows), 2), generator=draw)
    flip = chance(len(rows), cfg.flip, draw)
    if reach or cfg.flip:
        images = shifted(images, corners, flip)
    return normalise(images, source.mean, source.std)
