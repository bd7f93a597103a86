"""What is asked of `scdd-apps crossarch`, for files of any kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from scdd.errors import ConfigError

Tuning = Literal["shared", "per-arch"]
"""shared: the run's own settings for every net, as SC-DD (arXiv:2404.07976, Table 16) has one for
all; per-arch: those, with what a net needs beyond."""


@dataclass(frozen=True)
class Options:
    """Options of the command as they were given; None where the kind of the file decides."""

    archs: Sequence[str] | None = None
    seeds: int = 1
    tuning: str = "per-arch"
    epochs: int | None = None
    labels: Sequence[str] | None = None
    """Of class labels alone."""
    finetune: bool = False
    """Of representations alone."""
    overrides: Sequence[str] = ()

    def archs_or(self, default: Sequence[str]) -> tuple[str, ...]:
        """The architectures, each once."""
        return tuple(dict.fromkeys(self.archs or default))


def tuning_of(name: str) -> Tuning:
    """Check the value of --tuning.

    Raises:
        ConfigError: if there is none of this name.
    """
    for tuning in get_args(Tuning):
        if tuning == name:
            return tuning
    raise ConfigError(f"--tuning {name}: choose shared or per-arch")
