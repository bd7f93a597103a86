"""A backbone that is taken from a file instead of being trained."""

from pydantic import field_validator

from scdd.config.known_checkpoints import find
from scdd.config.section import Section
from scdd.errors import ConfigError


class CheckpointConfig(Section):
    """Weights that others trained; what the file cannot say has to be said here."""

    path: str
    """The weights: MoCo, SwAV, DINO, Barlow Twins, solo-learn, lightly, timm, torchvision, scdd."""
    head: str | None = None
    """A second file with the linear classifier, where it is published apart (SwAV, DINO)."""
    known: str | None = None
    """Name in `scdd checkpoints`, to have architecture, mean, std and accuracy compared."""

    @field_validator("known")
    @classmethod
    def _is_listed(cls, name: str | None) -> str | None:
        try:
            return name and find(name).name
        except ConfigError as error:
            raise ValueError(str(error)) from None
