"""Pre-training objectives, one file each; `base.Objective` is their contract."""

from scdd.config.objectives import (
    BarlowTwinsConfig,
    DinoConfig,
    MocoV2Config,
    MocoV3Config,
    SupervisedConfig,
    SwavConfig,
)
from scdd.config.squeeze import SqueezeConfig
from scdd.models import create_model, zero_init_residual
from scdd.objectives.barlow_twins import BarlowTwins
from scdd.objectives.base import Batch, Loss, Objective
from scdd.objectives.dino import Dino
from scdd.objectives.moco_v2 import MocoV2
from scdd.objectives.moco_v3 import MocoV3
from scdd.objectives.supervised import Supervised
from scdd.objectives.swav import Swav

__all__ = ["Batch", "Loss", "Objective", "create_objective"]


def create_objective(
    cfg: SqueezeConfig, image_size: int, num_classes: int, num_images: int
) -> Objective:
    """Build the objective that `cfg.objective` names around a new backbone.

    Args:
        cfg: the whole section.
        image_size: side of the images in pixels.
        num_classes: of the training set, for objectives that use labels.
        num_images: of the training set, for objectives that remember each image.

    Raises:
        ConfigError: if the architecture is unknown, or cannot be made as the section asks.
    """
    backbone, objective = create_model(cfg.arch, 0, image_size, cfg.stem), cfg.objective
    if cfg.zero_init_residual:
        zero_init_residual(backbone)
    match objective:
        case MocoV2Config():
            return MocoV2(backbone, objective)
        case MocoV3Config():
            return MocoV3(backbone, objective)
        case BarlowTwinsConfig():
            return BarlowTwins(backbone, objective)
        case SupervisedConfig():
            return Supervised(backbone, objective, num_classes, num_images)
        case SwavConfig():
            return Swav(backbone, objective)
        case DinoConfig():
            return Dino(backbone, objective)
