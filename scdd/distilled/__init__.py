"""The distilled file: images, labels, view records and soft labels in one HDF5 file."""

from scdd.distilled.batches import Batch, Sample
from scdd.distilled.dataset import DistilledDataset
from scdd.distilled.format import FORMAT_VERSION, Header
from scdd.distilled.label_sizes import LabelSizes, label_sizes
from scdd.distilled.reader import DistilledFile, read_header, verify
from scdd.distilled.records import ViewRecords, record_bytes
from scdd.distilled.soft_labels import CODECS, Arrays, Codec, codec_of, make_codec
from scdd.distilled.views import hard_label_weights, render_views, sample_views
from scdd.distilled.writer import write_distilled

__all__ = [
    "CODECS",
    "FORMAT_VERSION",
    "Arrays",
    "Batch",
    "Codec",
    "DistilledDataset",
    "DistilledFile",
    "Header",
    "LabelSizes",
    "Sample",
    "ViewRecords",
    "codec_of",
    "hard_label_weights",
    "label_sizes",
    "make_codec",
    "read_header",
    "record_bytes",
    "render_views",
    "sample_views",
    "verify",
    "write_distilled",
]
