"""What SC-DD (arXiv:2404.07976) published in its Table 8; reference, never a result of ours."""

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


def published_text() -> str:
    """The table as Markdown, under a heading of its own."""
    cells = [
        [arch, f"{row.parameters} M", f"{row.sre2l:.2f}", f"{row.scdd:.2f}"]
        for arch, row in TABLE_8.items()
    ]
    headers = ["architecture", "parameters", "SRe2L", "SC-DD"]
    return f"## Published\n\n{table(headers, cells)}\n\n{SOURCE}"


def published_record() -> dict[str, Any]:
    """The same for results.json, top-1 % by architecture."""
    rows = {arch: {"sre2l": row.sre2l, "scdd": row.scdd} for arch, row in TABLE_8.items()}
    return {"source": SOURCE, "top1": rows}
