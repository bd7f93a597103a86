"""Networks by name, with stems that suit the image size."""

from scdd.models.registry import create_model, has_choice_of_stem, list_models, recreate
from scdd.models.residuals import zero_init_residual

__all__ = ["create_model", "has_choice_of_stem", "list_models", "recreate", "zero_init_residual"]
