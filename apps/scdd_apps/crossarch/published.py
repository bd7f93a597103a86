"""What papers published of other architectures; reference, never a result of ours.

SC-DD (arXiv:2404.07976) in its Table 8, and Boost (arXiv:2507.21455) of networks that learn
representations.
"""

import re
from typing import Any, NamedTuple

from scdd.distilled import Header
from scdd.tables import table

CLASSES, IMAGE_SIZE, IPC = 1000, 224, 50


class Published(NamedTuple):
    """A row of the table: millions of parameters, then top-1 % on the images of both methods."""

    parameters: float
    sre2l: float
    scdd: float


TABLE_8: dict[str, Published] = {
    "resnet18": Published(11.7, 46.80, 53.13),
    "resnet50": Published(25.6, 55.60, 60.92),
    "resnet101": Published(44.5, 57.60, 60.98),
    "regnet_x_8gf": Published(39.6, 59.89, 61.94),
    "squeezenet1_0": Published(1.2, 14.66, 22.25),
    "mobilenet_v3_large": Published(5.4, 45.19, 51.65),
    "shufflenet_v2_x0_5": Published(1.4, 16.71, 27.48),
    "vit_tiny": Published(5.7, 15.41, 54.13),
}
SOURCE = (
    "Published, not measured here: Table 8 of arXiv:2404.07976. ImageNet-1K, 224 px, ipc 50, "
    "images recovered from a MoCo v3 network. The paper states one post-training (Table 16: AdamW "
    "lr 0.001, weight decay 0.01, batch 64, 300 epochs, 600 for final results) and no seeds. Its "
    "Table 6 has 60.8 for SRe2L on resnet101."
)


def is_setting_of_table_8(header: Header) -> bool:
    """Whether a file holds what the table is of: 50 images of each class of ImageNet-1K, 224 px.

    The classes are known by their WordNet names, which the folders of ImageNet bear.
    """
    return (len(header.class_names), header.image_size, header.ipc) == (
        CLASSES,
        IMAGE_SIZE,
        IPC,
    ) and all(re.fullmatch(r"n\d{8}", name) for name in header.class_names)


def table_8(header: Header) -> tuple[str, dict[str, Any]] | None:
    """SC-DD's table for a file of its setting: as Markdown, and top-1 % for results.json."""
    if not is_setting_of_table_8(header):
        return None
    cells = [
        [arch, f"{row.parameters} M", f"{row.sre2l:.2f}", f"{row.scdd:.2f}"]
        for arch, row in TABLE_8.items()
    ]
    headers = ["architecture", "parameters", "SRe2L", "SC-DD"]
    rows = {arch: {"sre2l": row.sre2l, "scdd": row.scdd} for arch, row in TABLE_8.items()}
    return _published(headers, cells, SOURCE), {"source": SOURCE, "top1": rows}


PAIRS_DATASET, PAIRS_IMAGE_SIZE, PAIRS_BUDGET = "cifar100", 32, 100
PAIRS_METHODS = ("Random", "DSA", "IDM", "DATM", "KRR-ST", "Boost")
TABLE_OF_BOOST: dict[str, tuple[float, ...]] = {
    "convnet_krr": (43.66, 39.38, 38.71, 38.73, 47.00, 52.41),
    "vgg11": (23.76, 19.97, 14.24, 26.04, 27.78, 35.35),
    "resnet18": (19.26, 20.11, 19.05, 21.20, 18.92, 20.90),
    "alexnet": (28.82, 31.57, 33.71, 29.31, 31.27, 36.88),
    "mobilenet": (11.99, 9.58, 8.18, 10.17, 10.11, 24.14),
    "vit_tiny": (20.70, 20.03, 17.41, 20.11, 20.82, 23.33),
}
"""Top-1 % by the nets that stand for the paper's here, method by method."""
SOURCE_OF_BOOST = (
    "Published, not measured here: the comparison of architectures of arXiv:2507.21455, on "
    "CIFAR-100 with N = 100 images. Scores seem to be those of a linear probe; seeds, and how "
    "the targets of its random images were made, are not known."
)


def table_of_boost(header: Header) -> tuple[str, dict[str, Any]] | None:
    """Boost's table for a file of its setting: as Markdown, and top-1 % for results.json."""
    setting = (header.dataset, header.image_size, header.budget_n)
    if setting != (PAIRS_DATASET, PAIRS_IMAGE_SIZE, PAIRS_BUDGET):
        return None
    cells = [[arch, *(f"{top1:.2f}" for top1 in row)] for arch, row in TABLE_OF_BOOST.items()]
    rows = {
        arch: dict(zip(PAIRS_METHODS, row, strict=True)) for arch, row in TABLE_OF_BOOST.items()
    }
    text = _published(["architecture", *PAIRS_METHODS], cells, SOURCE_OF_BOOST)
    return text, {"source": SOURCE_OF_BOOST, "top1": rows}


def _published(headers: list[str], cells: list[list[str]], source: str) -> str:
    """A table as Markdown, under a heading of its own."""
    return f"## Published\n\n{table(headers, cells)}\n\n{source}"
