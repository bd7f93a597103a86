"""Probe: a linear classifier on the frozen backbone makes it the teacher (SC-DD, section 2.2)."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scdd.augment import chance, normalise, random_resized_boxes, resized_crop
from scdd.config.probe import ProbeConfig
from scdd.datasets.sources import ImageSource
from scdd.models import recreate
from scdd.probing import features, fit_linear
from scdd.seeding import generator
from scdd.training import Accuracy, evaluate, evaluating


class Probed(NamedTuple):
    """The teacher, its accuracy on the validation images and the chosen penalty."""

    teacher: nn.Module
    accuracy: Accuracy
    l2: float


def probe(
    cfg: ProbeConfig,
    backbone: nn.Module,
    train: ImageSource,
    val: ImageSource,
    seed: int,
    device: torch.device,
) -> Probed:
    """Fit the head on eval-mode features of the training images; BatchNorm buffers never move.

    With several penalties, the one that is best on a held-out share of train is used.
    """
    backbone = backbone.to(device).eval()
    labels = train.labels.to(device)
    views = [features(backbone, train, device)]
    for number in range(cfg.crops):
        views.append(_crop_features(cfg, backbone, train, seed, number, device))
    stacked = torch.stack(views)
    l2 = cfg.l2[0] if len(cfg.l2) == 1 else _choose_l2(cfg, stacked, labels, seed)
    weight, bias = fit_linear(
        stacked.flatten(0, 1), labels.repeat(len(views)), len(train.classes), l2, cfg.iterations
    )
    teacher = _with_head(backbone, weight, bias).to(device).eval()
    return Probed(teacher, evaluate(teacher, val, device), l2)


def _choose_l2(cfg: ProbeConfig, views: Tensor, labels: Tensor, seed: int) -> float:
    """Return the penalty with the highest accuracy on images that took no part in the fit."""
    order = torch.randperm(len(labels), generator=generator(seed, "probe.holdout"))
    order = order.to(labels.device)
    held = max(1, round(cfg.holdout * len(labels)))
    test, fit = order[:held], order[held:]
    classes = int(labels.max()) + 1

    def accuracy(l2: float) -> float:
        weight, bias = fit_linear(
            views[:, fit].flatten(0, 1),
            labels[fit].repeat(len(views)),
            classes,
            l2,
            cfg.iterations,
        )
        logits = views[:, test].flatten(0, 1) @ weight.T + bias
        return (logits.argmax(dim=1) == labels[test].repeat(len(views))).double().mean().item()

    return max(cfg.l2, key=accuracy)


@torch.no_grad()
def _crop_features(
    cfg: ProbeConfig,
    backbone: nn.Module,
    source: ImageSource,
    seed: int,
    number: int,
    device: torch.device,
    batch: int = 500,
) -> Tensor:
    parts = []
    with evaluating(backbone):
        for block, index in enumerate(torch.arange(len(source)).split(batch)):
            draw = generator(seed, "probe.crops", number, block)
            x = source.read(index).to(device).float() / 255
            size = x.shape[-1]
            boxes = random_resized_boxes(len(x), size, size, cfg.crop_scale, draw)
            x = resized_crop(x, boxes, size, chance(len(x), 0.5 if cfg.flip else 0.0, draw))
            parts.append(backbone(normalise(x, source.mean, source.std)).float())
    return torch.cat(parts)


def _with_head(backbone: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    about = {name: getattr(backbone, name) for name in ("arch", "image_size", "stem_spec")}
    teacher, head = recreate({**about, "num_classes": len(bias)}), backbone.head
    state = copy.copy(backbone.state_dict())
    state[f"{head}.weight"], state[f"{head}.bias"] = weight, bias
    teacher.load_state_dict(state)
    return teacher
