"""Networks by name, with stems that suit the image size."""

from scdd.models.registry import create_model, list_models
from scdd.models.residuals import zero_init_residual

__all__ = ["create_model", "list_models", "zero_init_residual"]
