"""Soft labels read when they are wanted: by rows or kept, checked, and never all at once."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.label_store import write_store
from scdd.config.relabel import RelabelConfig
from scdd.distilled import DistilledFile, reader, stored_labels
from scdd.distilled.stored_labels import StoredLabels
from scdd.errors import FormatError

COUNT, CLASSES, VIEWS = 40, 300, 5
CODECS = {"full": {}, "int8": {}, "int4": {}, "topk": {"top": 3}}


@pytest.fixture(scope="module")
def files(content, tmp_path_factory):
    """A file of each codec, and the labels that it holds by the codec alone, [V, N, C]."""
    found = {}
    for codec, attributes in CODECS.items():
        path = tmp_path_factory.mktemp(codec) / "distilled.h5"
        made = content(
            RelabelConfig(),
            classes=CLASSES,
            ipc=None,
            views=VIEWS,
            codec=codec,
            size=1,
            **attributes,
        )
        found[codec] = made.write(path), path, made.codec.decode(made.codec.encode(made.logits))
    return found


@given(
    codec=st.sampled_from(list(CODECS)),
    asked=st.lists(
        st.tuples(st.integers(0, VIEWS - 1), st.lists(st.integers(0, 3), min_size=1, max_size=9)),
        min_size=1,
        max_size=6,
    ),
    first=st.integers(4, 5),
    kept=st.sampled_from([0, 2**30]),
    decoded=st.sampled_from([1, 4 * CLASSES * 5, 4 * CLASSES * 11, 2**30]),
    row=st.sampled_from([0, 700, 2**30]),
)
@settings(deadline=None, max_examples=80)
def test_rows_in_any_order_are_those_of_the_codec(codec, asked, first, kept, decoded, row, files):
    """Whatever is kept, however much is decoded at a time, and whether rows are read singly."""
    digest, path, wanted = files[codec]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_labels, "KEPT_BYTES", kept)
        patch.setattr(stored_labels, "DECODED_BYTES", decoded)
        patch.setattr(reader, "ROW_BYTES", row)
        labels = StoredLabels(path, digest, 5).first(first)
        for view, rows in asked:
            index = torch.tensor(rows)
            assert torch.equal(labels.rows(view, index), wanted[view, index])
            assert torch.equal(labels.view(view), wanted[view, :first])


@pytest.mark.parametrize("row", [0, 700, 2**30])
def test_a_file_reads_chosen_rows_as_h5py_does(files, row: int, monkeypatch):
    monkeypatch.setattr(reader, "ROW_BYTES", row)
    for _, path, wanted in files.values():
        with DistilledFile(path) as file:
            for rows in ([0], [1, 2, 3], [0, 4], []):
                found = file.logits(2, np.array(rows, dtype=np.int64))
                assert torch.equal(found, wanted[2, rows])


@pytest.mark.parametrize("kept", [0, 2**30])
def test_labels_that_make_no_sense_are_refused(content, tmp_path, kept: int, monkeypatch):
    monkeypatch.setattr(stored_labels, "KEPT_BYTES", kept)
    faults = {
        "full": ("logits", torch.tensor(torch.nan).half(), "not finite"),
        "topk": ("classes", torch.tensor(200).byte(), "a class is named that does not exist"),
    }
    for codec, (name, value, sentence) in faults.items():
        made = content(classes=5, codec=codec, **CODECS[codec])
        encode = made.codec.encode

        def spoilt(logits, encode=encode, name=name, value=value):
            encoded = encode(logits)
            encoded[name][:, 3, 1] = value
            return encoded

        object.__setattr__(made.codec, "encode", spoilt)
        labels = StoredLabels(tmp_path / f"{codec}.h5", made.write(tmp_path / f"{codec}.h5"), 10)
        with pytest.raises(FormatError, match=sentence):
            labels.rows(0, torch.tensor([3]))


def test_there_is_no_other_view(files):
    digest, path, _ = files["full"]
    for view in (-1, VIEWS):
        with pytest.raises(ValueError, match=f"view {view} is not one of the {VIEWS}"):
            StoredLabels(path, digest, 5).rows(view, torch.tensor([0]))


MEASURED = """
import json, sys, torch
from torch.utils.data import default_collate
from scdd import DistilledDataset
import scdd.distilled, scdd.run
torch.set_num_threads(1)
peak = scdd.run.PeakMemory()
before = peak.read()
data = DistilledDataset.open(sys.argv[1])
for view in range(data.num_views):
    data.set_epoch(view)
    for batch in torch.randperm(len(data))[:640].split(64):
        default_collate(data.__getitems__(batch.tolist()))
    next(data.epoch(view, 64, torch.Generator().manual_seed(view)))
print(json.dumps(peak.read() - before))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("images", "views"), [(5000, 30), (20_000, 8)])
def test_a_large_store_is_never_in_memory_as_a_whole(tmp_path, images: int, views: int):
    """300 MB of labels and more, of which views of 10 MB are kept and views of 40 MB are not."""
    path = tmp_path / "distilled.h5"
    write_store(path, RelabelConfig(mix="cutmix"), images, 1000, views, 32)
    command = [sys.executable, "-c", MEASURED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) < 0.7 * path.stat().st_size
