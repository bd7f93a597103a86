"""The public ImageNet-1K checkpoints of SC-DD (arXiv:2404.07976, Tables 2, 3 and 17), and a few.

Addresses stand on the project pages; nothing here downloads.
"""

import difflib
from dataclasses import dataclass

from scdd.config.section import Triple
from scdd.errors import ConfigError
from scdd.tables import table

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
SWAV_STD: Triple = (0.228, 0.224, 0.225)
"""What its authors trained and scored with; the first value differs from the usual one."""


@dataclass(frozen=True)
class KnownCheckpoint:
    """One published backbone."""

    name: str
    objective: str
    arch: str
    epochs: int
    linear_top1: float
    """Percent on the ImageNet-1K validation images: Table 17, or the project page if not there."""
    page: str
    file: str | None
    """Address of the backbone."""
    head: str | None
    """Address of a file with its linear head, alone or in a whole network."""
    licence: str
    non_commercial: bool
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    image_size: int = 224
    """Pixels."""


def find(name: str) -> KnownCheckpoint:
    """Return the checkpoint of this name.

    Raises:
        ConfigError: if there is none, with names that are close.
    """
    for known in KNOWN_CHECKPOINTS:
        if known.name == name:
            return known
    names = [known.name for known in KNOWN_CHECKPOINTS]
    close = difflib.get_close_matches(name, names)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise ConfigError(f"unknown checkpoint {name!r}; {hint}choose one of: {', '.join(names)}")


def listing() -> str:
    """All of them as a table, their addresses, and which may not be used commercially."""
    rows = [
        (
            known.name,
            known.objective,
            known.arch,
            str(known.epochs),
            f"{known.linear_top1:.1f}",
            str(known.image_size),
            " ".join(f"{value:g}" for value in (*known.mean, *known.std)),
            "no" if known.non_commercial else "yes",
            known.licence,
        )
        for known in KNOWN_CHECKPOINTS
    ]
    titles = ("checkpoint", "objective", "network", "epochs", "linear top-1", "px", "mean, std")
    lines = [table((*titles, "commercial use", "licence"), rows), ""]
    for page in dict.fromkeys(known.page for known in KNOWN_CHECKPOINTS):
        lines.append(page)
        for known in KNOWN_CHECKPOINTS:
            if known.page == page:
                lines.append(f"  {known.name}: {known.file or 'see the page'}")
                lines += [f"  {known.name}, linear head: {known.head}"] if known.head else []
    restricted = ", ".join(known.name for known in KNOWN_CHECKPOINTS if known.non_commercial)
    return "\n".join(
        [
            *lines,
            "",
            f"For non-commercial use only: {restricted}",
            "To use one: fetch the file, then squeeze.checkpoint: {path: FILE, known: NAME}",
        ]
    )


_HOST = "https://dl.fbaipublicfiles.com"


def _moco_v2(epochs: int, top1: float) -> KnownCheckpoint:
    file = f"{_HOST}/moco/moco_checkpoints/moco_v2_{epochs}ep/moco_v2_{epochs}ep_pretrain.pth.tar"
    return KnownCheckpoint(
        f"moco_v2_{epochs}ep",
        "moco_v2",
        "resnet50",
        epochs,
        top1,
        "https://github.com/facebookresearch/moco",
        file,
        None,
        "CC-BY-NC 4.0 (README), MIT (LICENSE)",
        True,  # The two differ; nobody goes wrong with the stricter one.
    )


def _moco_v3(epochs: int, top1: float) -> KnownCheckpoint:
    folder = f"{_HOST}/moco-v3/r-50-{epochs}ep"
    return KnownCheckpoint(
        f"moco_v3_{epochs}ep",
        "moco_v3",
        "resnet50",
        epochs,
        top1,
        "https://github.com/facebookresearch/moco-v3",
        f"{folder}/r-50-{epochs}ep.pth.tar",
        f"{folder}/linear-{epochs}ep.pth.tar",
        "CC-BY-NC 4.0",
        True,
    )


def _swav(epochs: int, top1: float, width: int = 1) -> KnownCheckpoint:
    files, suffix = f"{_HOST}/deepcluster", f"w{width}" if width > 1 else ""
    return KnownCheckpoint(
        f"swav_{suffix}_{epochs}ep" if suffix else f"swav_{epochs}ep",
        "swav",
        f"resnet50{suffix}",
        epochs,
        top1,
        "https://github.com/facebookresearch/swav",
        f"{files}/swav_{f'RN50{suffix}_' if suffix else ''}{epochs}ep_pretrain.pth.tar",
        f"{files}/swav_800ep_eval_linear.pth.tar" if epochs == 800 else None,
        "CC-BY-NC 4.0",
        True,
        std=SWAV_STD,
    )


KNOWN_CHECKPOINTS = (
    _moco_v2(200, 67.6),
    _moco_v2(800, 71.1),
    _moco_v3(100, 68.9),
    _moco_v3(300, 72.8),
    _moco_v3(1000, 74.6),
    _swav(100, 72.0),
    _swav(200, 73.8),
    _swav(400, 74.5),
    _swav(800, 75.3),
    _swav(400, 77.2, width=2),
    _swav(400, 77.4, width=4),
    _swav(400, 77.9, width=5),
    KnownCheckpoint(
        "dino_800ep",
        "dino",
        "resnet50",
        800,
        75.3,
        "https://github.com/facebookresearch/dino",
        f"{_HOST}/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth",
        f"{_HOST}/dino/dino_resnet50_pretrain/dino_resnet50_linearweights.pth",
        "Apache-2.0",
        False,
    ),
    KnownCheckpoint(
        "barlow_twins_1000ep",
        "barlow_twins",
        "resnet50",
        1000,
        73.5,  # Not in Table 17.
        "https://github.com/facebookresearch/barlowtwins",
        f"{_HOST}/barlowtwins/ljng/resnet50.pth",
        None,
        "MIT",
        False,
    ),
)
