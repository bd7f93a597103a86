"""How many bytes labels and views will take, before any is made."""

from typing import NamedTuple

from scdd.config.relabel import RelabelConfig
from scdd.distilled.records import record_bytes
from scdd.distilled.soft_labels import codec_of
from scdd.distilled.views import sample_views


class LabelSizes(NamedTuple):
    """Bytes that labels take."""

    labels: int
    """Soft labels in the file."""
    views: int
    """View records in the file."""
    shards: int
    """Both until the file is there."""


def label_sizes(cfg: RelabelConfig, count: int, image_size: int, classes: int) -> LabelSizes:
    """How much the labels of `count` images take."""
    codec = codec_of(cfg, classes)
    labels = cfg.views * count * codec.bytes_a_label if codec is not None else 0
    example = sample_views(cfg, count, image_size, 0, 0, 1).parameters
    unpacked = sum(values.nbytes for values in example.values())
    steps = cfg.randaugment.count if cfg.randaugment is not None else 0
    stored = record_bytes(example, count, steps)
    return LabelSizes(labels, cfg.views * stored, labels + cfg.views * unpacked)
