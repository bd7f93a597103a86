"""The distilled file: images, labels, view records and soft labels in one HDF5 file."""

from scdd.distilled.batches import Batch, Sample
from scdd.distilled.dataset import DistilledDataset
from scdd.distilled.factored import Approximation, FactoredSet
from scdd.distilled.format import FORMAT_VERSION, Header
from scdd.distilled.label_sizes import LabelSizes, label_sizes
from scdd.distilled.pair_writer import write_pairs
from scdd.distilled.pairs import DenseSet, Pairs, materialised
from scdd.distilled.reader import DistilledFile, read_header, require_classes, verify
from scdd.distilled.records import ViewRecords, record_bytes
from scdd.distilled.representations import Pair, RepresentationDataset
from scdd.distilled.soft_labels import CODECS, Arrays, Codec, codec_of, make_codec
from scdd.distilled.views import hard_label_weights, render_views, sample_views
from scdd.distilled.writer import write_distilled

__all__ = [
    "CODECS",
    "FORMAT_VERSION",
    "Approximation",
    "Arrays",
    "Batch",
    "Codec",
    "DenseSet",
    "DistilledDataset",
    "DistilledFile",
    "FactoredSet",
    "Header",
    "LabelSizes",
    "Pair",
    "Pairs",
    "RepresentationDataset",
    "Sample",
    "ViewRecords",
    "codec_of",
    "hard_label_weights",
    "label_sizes",
    "make_codec",
    "materialised",
    "read_header",
    "record_bytes",
    "render_views",
    "require_classes",
    "sample_views",
    "verify",
    "write_distilled",
    "write_pairs",
]
