"""Networks by name, with stems that suit the image size."""

from scdd.models.registry import create_model, list_models

__all__ = ["create_model", "list_models"]
