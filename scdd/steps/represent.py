"""Step represent: recovered images and a backbone to pairs of images and representations."""

from scdd.bilevel.pairs import represented
from scdd.checkpoint import load_weights
from scdd.distilled import DistilledFile
from scdd.distilled.bill import describe_bill, least_budget
from scdd.distilled.pair_writer import write_pairs
from scdd.distilled.pairs import sizes_of, stored_parts
from scdd.progress import say
from scdd.steps.context import Context
from scdd.steps.pairs import BACKBONE, FILE, backbone_of, pair_header


def run_represent(context: Context, step: str) -> tuple[str, ...]:
    """backbone + images.h5 -> distilled.h5: the images with what the backbone says of their views.

    Their classes stay behind, as such a file has none.
    """
    cfg = context.cfg
    assert cfg.represent is not None
    _, about = load_weights(context.run.path / BACKBONE)
    with DistilledFile(context.run.path / cfg.images_from / "images.h5") as file:
        images = file.images()
    turns = cfg.represent.turns
    pairs = represented(
        backbone_of(context), images, about["mean"], about["std"], turns, context.device
    )
    shapes = {name: part.shape for name, part in stored_parts(pairs).items()}
    sizes = sizes_of(shapes, pairs.image_size)
    budget_n = least_budget(sizes)
    say(f"  {describe_bill(sizes, budget_n)}")
    header = pair_header(context, pairs, cfg.method, budget_n)
    write_pairs(context.run.folder(step) / FILE, header, pairs)
    return (FILE,)
