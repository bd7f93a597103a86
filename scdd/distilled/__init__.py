"""The distilled file: images, labels, view records and soft labels in one HDF5 file."""

from scdd.distilled.dataset import Batch, DistilledDataset
from scdd.distilled.format import FORMAT_VERSION, Header
from scdd.distilled.reader import DistilledFile, read_header, verify
from scdd.distilled.records import ViewRecords
from scdd.distilled.soft_labels import CODECS, Codec
from scdd.distilled.views import hard_label_weights, render_views, sample_views
from scdd.distilled.writer import write_distilled

__all__ = [
    "CODECS",
    "FORMAT_VERSION",
    "Batch",
    "Codec",
    "DistilledDataset",
    "DistilledFile",
    "Header",
    "ViewRecords",
    "hard_label_weights",
    "read_header",
    "render_views",
    "sample_views",
    "verify",
    "write_distilled",
]
