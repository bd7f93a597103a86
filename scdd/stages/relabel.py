"""Relabel: the teacher's logits on stored views of the distilled images (SC-DD, Eq. 10)."""

from collections.abc import Callable, Generator, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from scdd.config.relabel import RelabelConfig
from scdd.config.section import Triple
from scdd.distilled.labelling import IMAGES_A_PASS, Labellers, label_views, passes
from scdd.distilled.soft_labels import Arrays
from scdd.distilled.views import ViewRecords, sample_views
from scdd.training import fitting_threads


def relabel(
    cfg: RelabelConfig,
    teachers: Sequence[nn.Module],
    images: Tensor,
    mean: Triple,
    std: Triple,
    seed: int,
    views: Iterable[int],
    device: torch.device,
    encode: Callable[[Tensor], Arrays] | None,
    batch: int = IMAGES_A_PASS,
) -> Generator[tuple[ViewRecords, Arrays], None, None]:
    """Yield the records of each view and what is kept of its labels, every tensor [1, N, ...].

    Never are the pixels or the logits of a whole view in memory.

    Args:
        teachers: networks; a label is the mean of their logits.
        images: uint8 [N, 3, S, S], on any device, or mapped from a file.
        mean, std: of the pixels, as the teachers know them.
        encode: from logits float32 [B, C] to what is kept of them; None: nothing is, so no label is
            made.
        batch: images per forward pass; no effect on the labels but rounding.
    """
    count, grouped = len(images), cfg.teacher_bn == "batch"
    labellers = Labellers(teachers, grouped).to(device)
    example = torch.empty(min(batch, count), *images.shape[1:], device=device)
    with fitting_threads(teachers[0].to(device), example, passes=len(teachers)):
        for view in views:
            records = sample_views(cfg, count, images.shape[-1], seed, view, view + 1)
            kept: dict[str, np.ndarray] = {}
            if encode is not None:
                parts = passes(records, 0, count, batch)
                for rows, logits in label_views(
                    labellers, images, records, 0, mean, std, device, parts
                ):
                    for name, values in encode(logits).items():
                        part = values.cpu().numpy()  # Torch cannot put uint16 in places.
                        if name not in kept:
                            kept[name] = np.empty((1, count, *part.shape[1:]), part.dtype)
                        kept[name][0, rows.numpy()] = part
            yield records, {name: torch.from_numpy(values) for name, values in kept.items()}
