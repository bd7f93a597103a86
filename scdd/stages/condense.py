"""Condense: learn images whose class means are those of the real ones in random embeddings.

Distribution matching (DM, arXiv:2110.04181, Algorithm 1). Ours is that the images stay valid
pixels: a file of 8 bits cannot hold what leaves their range, so every step is projected back.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from scdd.augment import denormalise, draw_dsa, dsa, normalise
from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.condense import CondenseConfig
from scdd.datasets.sources import ImageSource
from scdd.errors import ConfigError, RunError
from scdd.models import create_model
from scdd.progress import Bar
from scdd.seeding import generator, seeded

REPORT_EVERY = 50
"""Iterations; only then does the host look at the loss."""
FIRST_REPORTS = (1, 2, 5, 10, 20)
"""Iterations after which it does so too, as the loss falls fastest at the start."""
PIXELS = {"cpu": 2**18}
"""Of the images of a forward pass, by kind of device: 256 of 32 px."""
MANY_PIXELS = 2**22
"""The same on any other device."""


def condense(
    cfg: CondenseConfig,
    source: ImageSource,
    ipc: int,
    image_size: int,
    start: Tensor | None,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    log: Callable[..., None] = lambda **values: None,
) -> Tensor:
    """Return the condensed images, uint8 [C * ipc, 3, S, S] in rank-major order.

    Each iteration draws a network, and of every class a real batch and an augmentation for both
    kinds of images; one step of SGD lowers the sum over the classes of the squared distance
    between the mean embeddings.

    Args:
        cfg: the settings.
        source: the real images, and how their pixels are normalised.
        ipc: images per class.
        image_size: S.
        start: uint8 [C * ipc, 3, S, S], rank-major, to start from; None: Gaussian noise.
        seed: of the run.
        device: where to compute.
        checkpoint: the state of the loop; what is drawn depends on seed and iteration alone.
        log: called with the loss now and then.

    Raises:
        ConfigError: if the network cannot serve (`check_embedding`).
        RunError: if the loss or a pixel stops being finite, or the images are stuck.
    """
    check_embedding(cfg.arch, image_size)
    classes = len(source.classes)
    members = [(source.labels == label).nonzero().squeeze(1) for label in range(classes)]
    parts = torch.arange(classes).split(_classes_of_a_pass(cfg, ipc, image_size, device))
    low, high = (
        normalise(torch.full((1, 3, 1, 1), edge, device=device), source.mean, source.std)
        for edge in (0.0, 1.0)
    )
    x = _begun(source, start, (classes * ipc, 3, image_size, image_size), seed).to(device)
    x.requires_grad_(True)
    optimizer = torch.optim.SGD([x], lr=cfg.lr, momentum=cfg.momentum)
    iteration, note = _restore(checkpoint, x, optimizer), ""
    with Bar("condense", cfg.iterations, iteration) as bar:
        while iteration < cfg.iterations:
            net = random_network(cfg.arch, image_size, seed, iteration).to(device)
            drawn = generator(seed, "condense.dsa", iteration)
            changes = draw_dsa(cfg.dsa, classes, image_size, drawn)
            real = _draw_real(members, cfg.batch, generator(seed, "condense.real", iteration))
            optimizer.zero_grad()
            loss = torch.zeros((), device=device)
            for labels in parts:  # No image is in two of them, so each gets its whole gradient.
                rows = [real[label] for label in labels.tolist()]
                counts = torch.tensor([len(own) for own in rows])
                shown = source.read(torch.cat(rows)).to(device)
                shown = normalise(shown.float() / 255, source.mean, source.std)
                ours = x[(labels[:, None] + classes * torch.arange(ipc)).flatten().to(device)]
                part = class_mean_loss(
                    net,
                    dsa(shown, changes.rows(labels.repeat_interleave(counts))),
                    counts.tolist(),
                    dsa(ours, changes.rows(labels.repeat_interleave(ipc))),
                    ipc,
                )
                part.backward()
                loss += part.detach()
            optimizer.step()
            with torch.no_grad():
                x.clamp_(low, high)
            iteration += 1
            if _is_reported(iteration, cfg.iterations):
                note = _report(cfg, iteration, loss.item(), log)
            bar.advance(note=note)
            if checkpoint.due:
                checkpoint.save(_state(iteration, x, optimizer))
    _check_images(cfg, x.detach(), low, high)
    pixels = denormalise(x.detach(), source.mean, source.std).cpu()
    return (255 * pixels).round().clamp(0, 255).to(torch.uint8)


def class_mean_loss(
    net: nn.Module, real: Tensor, counts: Sequence[int], synthetic: Tensor, ipc: int
) -> Tensor:
    """Sum over classes of the squared distance between the mean embeddings; no gradient to `real`.

    Args:
        net: images [B, 3, S, S] to embeddings [B, D], each image by itself.
        real: [sum of counts, 3, S, S], class by class.
        counts: how many of each class.
        synthetic: [classes * ipc, 3, S, S], class by class.
        ipc: how many of each class.
    """
    with torch.no_grad():
        means = torch.stack([own.mean(dim=0) for own in net(real).split(list(counts))])
    return (net(synthetic).unflatten(0, (-1, ipc)).mean(dim=1) - means).square().sum()


def random_network(arch: str, image_size: int, seed: int, iteration: int) -> nn.Module:
    """A frozen, untrained network that embeds images [B, 3, S, S]: [B, D], its features."""
    with seeded(seed, "condense.network", iteration):
        net = create_model(arch, 0, image_size)
    return net.eval().requires_grad_(False)


def check_embedding(arch: str, image_size: int) -> None:
    """Refuse a network that does not embed each image by itself.

    Raises:
        ConfigError: if it has BatchNorm, or cannot be built for this size.
    """
    try:
        net = create_model(arch, 0, image_size)
    except ConfigError as error:
        raise ConfigError(f"condense.arch: {error}") from error
    if any(isinstance(module, _BatchNorm) for module in net.modules()):
        raise ConfigError(
            f"condense.arch = {arch} has BatchNorm layers, which know nothing in an untrained "
            "network but the batch, where classes would mix; choose a network without, such as "
            "convnet"
        )


def _classes_of_a_pass(cfg: CondenseConfig, ipc: int, image_size: int, device: torch.device) -> int:
    pixels = max(cfg.batch, ipc) * image_size**2
    return cfg.group or max(1, PIXELS.get(device.type, MANY_PIXELS) // pixels)


def _draw_real(members: Sequence[Tensor], most: int, draw: torch.Generator) -> list[Tensor]:
    """Of each class the numbers of `most` images, or of all if it has no more."""
    return [own[torch.randperm(len(own), generator=draw)[:most]] for own in members]


def _begun(source: ImageSource, start: Tensor | None, shape: tuple[int, ...], seed: int) -> Tensor:
    if start is None:
        return torch.randn(shape, generator=generator(seed, "condense.start"))
    return normalise(start.float() / 255, source.mean, source.std)


def _is_reported(iteration: int, iterations: int) -> bool:
    """Whether the loss of an iteration, counted from 1, is looked at."""
    return iteration % REPORT_EVERY == 0 or iteration in (*FIRST_REPORTS, iterations)


def _report(cfg: CondenseConfig, iteration: int, loss: float, log: Callable[..., None]) -> str:
    """Log a loss and put it into words."""
    if not math.isfinite(loss):
        raise RunError(_diverged(cfg, f"the loss is {loss:g} at iteration {iteration}"))
    log(iteration=iteration, loss=loss)
    return f"loss {loss:.4g}"


def _check_images(cfg: CondenseConfig, x: Tensor, low: Tensor, high: Tensor) -> None:
    if not x.isfinite().all():
        raise RunError(_diverged(cfg, "the images end with pixels that are no numbers"))
    if ((x == low) | (x == high)).all():
        raise RunError(_diverged(cfg, "the images end with every pixel at the end of its range"))


def _diverged(cfg: CondenseConfig, found: str) -> str:
    return (
        f"condense: {found}; lower condense.lr (now {cfg.lr:g}) and run again with --redo condense"
    )


def _state(iteration: int, x: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, object]:
    return {"iteration": iteration, "images": x.detach(), "optimizer": optimizer.state_dict()}


def _restore(checkpoint: Checkpoint, x: Tensor, optimizer: torch.optim.Optimizer) -> int:
    """Take up the saved state, if there is one; return how many iterations are done."""
    state = checkpoint.load()
    if state is None:
        return 0
    with torch.no_grad():
        x.copy_(state["images"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["iteration"])
