"""What the tests of views share: draws, noise, a photograph, views made as a stage makes them."""

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from scipy import stats
from sklearn.datasets import load_sample_image
from torch import Tensor

from scdd.augment import ViewDraw, colour, draw_views, resized_crop
from scdd.config.views import ViewConfig

# A correct draw fails a test at this level once in a thousand seeds; the seeds here are fixed.
SIGNIFICANCE = 1e-3
# torchvision rounds the luma weight of red to 0.2989; ours is the standard's 0.299.
LUMA_ROUNDING = 2e-4


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=draw(seed), dtype=dtype)


@pytest.fixture(scope="session")
def photo() -> Tensor:
    """Return a real photograph: float32 [1, 3, 64, 64]."""
    image = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None] / 255
    return TF.resize(image[..., :427], [64, 64], antialias=True)


def only(**changes: float | tuple[float, float]) -> ViewConfig:
    """Return a configuration that changes nothing but what is named."""
    chances = {"flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0, "solarise": 0.0}
    strengths = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    return ViewConfig.model_validate({"crop_scale": (1.0, 1.0)} | chances | strengths | changes)


def made(images: Tensor, drawn: ViewDraw) -> Tensor:
    """Make the view `drawn` of images [B, 3, H, W]."""
    boxes = drawn.crop.boxes(torch.tensor([images.shape[2:]]))
    return colour(resized_crop(images, boxes, drawn.crop.size, drawn.crop.flip), drawn.colour)


def view(images: Tensor, cfg: ViewConfig, generator: torch.Generator | None = None) -> Tensor:
    """Draw one view of square images and make it."""
    drawn, *_ = draw_views([cfg], len(images), images.shape[-1], generator or draw())
    return made(images, drawn)


def is_binomial(hits: int, count: int, probability: float) -> bool:
    return stats.binomtest(hits, count, probability).pvalue > SIGNIFICANCE
