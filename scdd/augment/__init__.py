"""Random views of a batch of images: every draw is per sample, every operation runs on the device.

Images are float [B, 3, H, W] with values in [0, 1] unless said otherwise.
"""

from scdd.augment.colour import colour
from scdd.augment.crops import chance, random_resized_boxes, resized_crop, shifted, uniform
from scdd.augment.dsa import DsaDraw, draw_dsa, dsa
from scdd.augment.pixels import denormalise, normalise
from scdd.augment.randaugment import randaugment, random_steps
from scdd.augment.views import CropDraw, ViewDraw, draw_views

__all__ = [
    "CropDraw",
    "DsaDraw",
    "ViewDraw",
    "chance",
    "colour",
    "denormalise",
    "draw_dsa",
    "draw_views",
    "dsa",
    "normalise",
    "randaugment",
    "random_resized_boxes",
    "random_steps",
    "resized_crop",
    "shifted",
    "uniform",
]
