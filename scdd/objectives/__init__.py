"""Pre-training objectives, one file each; `base.Objective` is their contract."""

from scdd.config.objectives import DinoConfig, MocoV2Config, SwavConfig
from scdd.config.squeeze import SqueezeConfig
from scdd.models import create_model
from scdd.objectives.base import Batch, Loss, Objective
from scdd.objectives.dino import Dino
from scdd.objectives.moco_v2 import MocoV2
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
    """
    backbone, objective = create_model(cfg.arch, 0, image_size), cfg.objective
    if isinstance(objective, SwavConfig):
        return Swav(backbone, objective)
    if isinstance(objective, DinoConfig):
        return Dino(backbone, objective)
    assert isinstance(objective, MocoV2Config)
    return MocoV2(backbone, objective)
