"""Step decode: pairs of images and representations to images.h5, which can be labelled."""

import torch

from scdd.checkpoint import load_weights
from scdd.distilled import RepresentationDataset, write_distilled
from scdd.progress import say
from scdd.steps.context import Context, header_of
from scdd.steps.pairs import FILE


def run_decode(context: Context, step: str) -> tuple[str, ...]:
    """pairs -> images.h5: the images as they are, not turned, in 8 bits and of no class."""
    cfg = context.cfg
    assert cfg.pairs_from is not None
    data = RepresentationDataset.open(context.run.path / cfg.pairs_from / FILE)
    images, cut = data.pixels(0), data.cut(0)
    say(f"  {len(images)} images; {cut}")
    context.run.log(step, images=len(images), cut_share=cut.share, cut_levels=cut.levels)
    _, about = load_weights(context.run.path / "probe" / "teacher.safetensors")
    header = header_of(context, about, "none", budget_n=len(images))
    labels = torch.full((len(images),), -1)
    write_distilled(context.run.folder(step) / "images.h5", header, images, labels, None)
    return ("images.h5",)
