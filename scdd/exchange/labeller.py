"""The teacher of a run as the labeller of images that come from elsewhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scdd.checkpoint import fill, load_weights
from scdd.config.relabel import RelabelConfig
from scdd.config.section import Triple
from scdd.distilled import Arrays, Codec, ViewRecords
from scdd.errors import CheckpointError
from scdd.models import recreate
from scdd.progress import Bar
from scdd.stages.relabel import relabel
from scdd.steps import teacher_record


@dataclass(frozen=True, eq=False)
class Labeller:
    """A teacher.safetensors: its network, and what goes with that."""

    path: Path
    network: nn.Module
    classes: tuple[str, ...]
    mean: Triple
    std: Triple
    image_size: int
    about: dict[str, Any]
    """All that the file says of it."""

    def record(self, cfg: RelabelConfig) -> dict[str, Any]:
        """What a distilled file says of its teacher."""
        return teacher_record(self.path, self.about) | {"bn": cfg.teacher_bn}

    def blocks(
        self,
        cfg: RelabelConfig,
        codec: Codec | None,
        images: Tensor,
        seed: int,
        device: torch.device,
    ) -> Iterator[tuple[ViewRecords, Arrays]]:
        """Yield views of images uint8 [N, 3, S, S] with their labels as the codec stores them."""
        views, encode = range(cfg.views), codec.encode if codec is not None else None
        with Bar("relabel", cfg.views) as bar:
            for block in relabel(
                cfg, [self.network], images, self.mean, self.std, seed, views, device, encode
            ):
                yield block
                bar.advance()


def load_labeller(path: Path) -> Labeller:
    """Load the teacher.safetensors of a run.

    Raises:
        CheckpointError: if it is another file, or a damaged one.
    """
    weights, about = load_weights(path)
    try:
        classes, (mean, std) = tuple(about["classes"]), (_triple(about[n]) for n in ("mean", "std"))
        network = recreate(about)
        side = int(about["image_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: is no teacher; give the probe/teacher.safetensors of a run"
        ) from error
    return Labeller(path, fill(network, weights, path), classes, mean, std, side, about)


def _triple(values: Any) -> Triple:
    red, green, blue = map(float, values)
    return red, green, blue
