"""What is written is what is read, with the same digest for the same content."""

import dataclasses
import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scdd.config.relabel import RandAugmentConfig, RelabelConfig
from scdd.distilled import DistilledFile, read_header, sample_views, verify, write_distilled

WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
CONFIGS = st.builds(
    RelabelConfig,
    crop=st.sampled_from(["none", "resized", "padded"]),
    padding=st.integers(0, 9),
    flip=st.booleans(),
    randaugment=st.none()
    | st.builds(RandAugmentConfig, count=st.integers(1, 16), magnitude=st.integers(0, 30)),
    mix=st.sampled_from(["none", "mixup", "cutmix"]),
    teacher_bn=st.sampled_from(["running", "batch"]),
    group=st.integers(2, 5),
)


@settings(deadline=None, max_examples=60)
@given(
    cfg=st.none() | CONFIGS,
    classes=st.integers(2, 5),
    ipc=st.none() | st.integers(1, 4),
    views=st.integers(1, 5),
    size=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
    block=st.integers(1, 5),
    codec=st.sampled_from(["full", "int8", "int4", "topk", "hard", "teacher"]),
    data=st.data(),
)
def test_everything_comes_back(
    cfg, classes, ipc, views, size, seed, block, codec, data, content, tmp_path_factory
):
    about = {
        "dataset": data.draw(WORDS),
        "class_names": data.draw(st.lists(st.text(), min_size=classes, max_size=classes)),
        "config": data.draw(st.dictionaries(st.text(max_size=5), JSON, max_size=3)),
        "teacher": data.draw(st.none() | st.dictionaries(st.text(max_size=5), JSON, max_size=3)),
    }
    top = {"top": data.draw(st.integers(1, classes - 1))} if codec == "topk" else {}
    made = content(cfg, classes, ipc, views, size, seed, about, codec, **top)
    path = tmp_path_factory.mktemp("round") / "distilled.h5"
    digest = made.write(path, block)
    with DistilledFile(path) as file:
        assert dataclasses.replace(file.header, digest="") == made.header
        assert file.header.digest == digest
        assert torch.equal(file.images(), made.images)
        assert torch.equal(file.labels(), made.labels)
        if cfg is None:
            assert file.views is None and file.num_views == 0
        else:
            assert (file.views.ops, file.views.padding) == (made.records.ops, made.records.padding)
            assert file.views.parameters.keys() == made.records.parameters.keys()
            for name, values in made.records.parameters.items():
                assert file.views.parameters[name].dtype == values.dtype
                assert torch.equal(file.views.parameters[name], values)
        if cfg is None or codec == "hard":
            assert file.codec is None
        else:
            assert (file.codec.name, file.codec.attributes) == (codec, top)
        if cfg is not None and codec in ("full", "int8", "int4", "topk"):
            wanted = made.codec.decode(made.codec.encode(made.logits))
            some = np.arange(len(made.images))[1::2]
            for view in range(views):
                assert torch.equal(file.logits(view), wanted[view])
                assert torch.equal(file.logits(view, some), wanted[view, 1::2])
    assert verify(path) == []


def test_the_same_content_has_the_same_digest_however_it_is_cut(content, tmp_path):
    made = content(RelabelConfig(mix="cutmix"), views=6)
    later = dataclasses.replace(made, header=dataclasses.replace(made.header, created="later"))
    digests = {
        made.write(tmp_path / "a.h5", block=1),
        made.write(tmp_path / "b.h5", block=4),
        later.write(tmp_path / "c.h5"),
    }
    assert len(digests) == 1
    first, third = read_header(tmp_path / "a.h5"), read_header(tmp_path / "c.h5")
    assert dataclasses.replace(first, created="later") == third


def test_two_writes_give_the_same_bytes(content, tmp_path):
    made = content()
    for name in ("a.h5", "b.h5"):
        made.write(tmp_path / name)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.parametrize("part", ["images", "labels", "logits", "header", "padding"])
def test_other_content_has_another_digest(content, tmp_path, part: str):
    made = content(RelabelConfig(crop="padded"), ipc=None)
    changed = {
        "images": lambda: dataclasses.replace(made, images=made.images ^ 1),
        "labels": lambda: dataclasses.replace(made, labels=made.labels + 1),
        "logits": lambda: dataclasses.replace(made, logits=made.logits + 1),
        "header": lambda: dataclasses.replace(
            made, header=dataclasses.replace(made.header, seed=9)
        ),
        "padding": lambda: dataclasses.replace(
            made, records=dataclasses.replace(made.records, padding=9)
        ),
    }[part]()
    assert made.write(tmp_path / "a.h5") != changed.write(tmp_path / "b.h5")


def test_the_file_is_the_table_of_the_format(file: Path):
    """Read with h5py alone, as a stranger would."""
    with h5py.File(file) as root:
        assert set(root) == {"images", "labels", "views", "soft_labels"}
        assert root.attrs["format"] == b"scdd" and root.attrs["format_version"] == 1
        assert root.attrs["complete"]
        assert json.loads(root.attrs["ipc"]) == 2 and json.loads(root.attrs["budget_n"]) is None
        assert json.loads(root.attrs["class_names"]) == ["class 0", "class 1", "class 2"]
        assert json.loads(root.attrs["teacher"])["arch"] == "resnet8"
        assert json.loads(root["views"].attrs["ops"]) == ["crop", "flip", "mixup"]
        assert root["soft_labels"].attrs["codec"] == b"full"
        found = {}
        root.visititems(
            lambda name, item: (
                found.update({name: (item.dtype.str, item.shape)})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
        assert found == {
            "images": ("|u1", (6, 3, 8, 8)),
            "labels": ("<i4", (6,)),
            "views/crop": ("<i2", (4, 6, 4)),
            "views/flip": ("|u1", (4, 1)),
            "views/lambda": ("<u2", (4, 6)),
            "views/partner": ("<u2", (4, 6)),
            "soft_labels/logits": ("<f2", (4, 6, 3)),
        }
        assert all(root[name].fletcher32 for name in found)
        assert all(len(root[name].attrs["sha256"]) == 64 for name in found)


def test_no_structure_is_newer_than_hdf5_1_10(file: Path):
    data = file.read_bytes()
    assert data[8] == 3  # version of the superblock
    # Message 8 of an object header, its size, its flags, then: version of the layout, 2 (chunked).
    versions = re.findall(rb"\x08..[\x00-\x07](.)\x02", data, re.DOTALL)
    assert versions.count(b"\4") == 7 and b"\5" not in versions  # 5 came with HDF5 2.0


def test_a_large_dataset_is_cut_in_chunks_of_about_a_mebibyte(content, tmp_path):
    made = content(None, classes=2, ipc=20, size=128)
    made.write(tmp_path / "images.h5")
    with h5py.File(tmp_path / "images.h5") as root:
        assert root["images"].chunks == (21, 3, 128, 128)
    with DistilledFile(tmp_path / "images.h5") as opened:
        assert torch.equal(opened.images(), made.images)


def test_one_view_of_many_labels_is_cut_in_chunks_too(content, tmp_path):
    made = content(RelabelConfig(crop="none"), classes=300, ipc=10, views=2, size=1)
    made.write(tmp_path / "distilled.h5")
    with h5py.File(tmp_path / "distilled.h5") as root:
        assert root["soft_labels/logits"].chunks == (1, 54, 300)
    with DistilledFile(tmp_path / "distilled.h5") as opened:
        assert torch.equal(opened.logits(1), made.logits[1].half().float())


def test_a_long_header_fits(content, tmp_path):
    names = [f"class number {k} with a rather long name" for k in range(3000)]
    made = content(None, classes=3000, ipc=1, size=1, about={"class_names": names})
    made.write(tmp_path / "images.h5")
    assert read_header(tmp_path / "images.h5").class_names == tuple(names)


def test_arrays_serve_as_well_as_tensors(content, tmp_path):
    made = content(None)
    args = (made.header, made.images.numpy(), made.labels.numpy().astype(np.int16))
    assert write_distilled(tmp_path / "a.h5", *args) == made.write(tmp_path / "b.h5")


def test_blocks_are_drawn_one_at_a_time(content, tmp_path):
    made = content(views=6)
    sizes = []

    def watched():
        for block in made.blocks(2):
            temporary = [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
            assert len(temporary) == 1 and not (tmp_path / "distilled.h5").exists()
            sizes.append(block[0].count())
            yield block

    path = tmp_path / "distilled.h5"
    write_distilled(path, made.header, made.images, made.labels, watched(), 6, made.codec)
    assert sizes == [2, 2, 2] and [path.name for path in tmp_path.iterdir()] == ["distilled.h5"]


def test_content_that_does_not_fit_is_refused_and_leaves_no_file(content, tmp_path):
    made = content(views=4)
    path = tmp_path / "distilled.h5"

    def write(header=made.header, images=made.images, labels=made.labels, blocks=None, views=4):
        write_distilled(path, header, images, labels, blocks or made.blocks(2), views, made.codec)

    other = sample_views(RelabelConfig(flip=False), 6, 8, 0, 0, 2)
    half = made.logits.half()
    first = {"logits": half[:2]}
    bad_box = made.records.slice(0, 4)
    bad_box.parameters["crop"] = bad_box.parameters["crop"] + 100
    cases = {
        "there are 4 of the 5": {"views": 5},
        "more than the 3": {"views": 3},
        "0 of the 4": {"blocks": iter([])},
        "images are": {"images": made.images.float()},
        "labels lie in": {"labels": made.labels + 1},
        "rank-major": {"labels": made.labels.flip(0)},
        "logits of the soft labels is torch.float16": {
            "blocks": [(made.records, {"logits": half[:, :, :2]})]
        },
        "logits of the soft labels is torch.float32": {
            "blocks": [(made.records, {"logits": made.logits})]
        },
        "soft labels hold": {"blocks": [(made.records, {})]},
        "differ in operations": {
            "blocks": [(made.records.slice(0, 2), first), (other, {"logits": half[2:]})]
        },
        "outside its range": {"blocks": [(bad_box, {"logits": half})]},
    }
    for message, change in cases.items():
        with pytest.raises(ValueError, match=message):
            write(**change)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="target_kind"):
        write_distilled(path, made.header, made.images, made.labels)
    with pytest.raises(ValueError, match="target_kind"):
        write_distilled(path, made.header, made.images, made.labels, made.blocks(2), 4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "factored"),
        ("target_kind", "caption"),
        ("std", (0.2, 0.0, 0.2)),
        ("mean", (0.2, float("nan"), 0.2)),
        ("ipc", None),
        ("budget_n", 7),
        ("seed", -1),
        ("target_dim", 7),
        ("image_size", 0),
        ("dataset", "a\0b"),
        ("class_names", ()),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(content, field: str, value: object):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(content().header, **{field: value})
