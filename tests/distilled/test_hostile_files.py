"""Files that are made to mislead, or that another scdd wrote: refused by name, in one sentence."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scdd.distilled import DistilledFile, read_header, verify
from scdd.errors import FormatError
from scdd.inspection import describe

Change = Callable[[h5py.File], None]


def replaced(name: str, **how: object) -> Change:
    """A change that puts another dataset in the place of one, with the same hash."""

    def change(root: h5py.File) -> None:
        sha256 = root[name].attrs["sha256"]
        del root[name]
        root.create_dataset(name, **how).attrs["sha256"] = sha256

    return change


def linked(name: str, link: object) -> Change:
    def change(root: h5py.File) -> None:
        root.move(name, "kept")
        root[name] = link

    return change


def virtual(root: h5py.File) -> None:
    sha256 = root["labels"].attrs["sha256"]
    del root["labels"]
    layout = h5py.VirtualLayout(shape=(6,), dtype="<i4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "labels", shape=(6,))
    root.create_virtual_dataset("labels", layout).attrs["sha256"] = sha256


def attribute(name: str, value: object, owner: str = "/") -> Change:
    def change(root: h5py.File) -> None:
        root[owner].attrs[name] = value

    return change


def without(name: str, owner: str = "/") -> Change:
    def change(root: h5py.File) -> None:
        with contextlib.suppress(KeyError):
            del root[owner].attrs[name]
            return
        del root[owner][name]

    return change


CASES: dict[str, tuple[Change, str]] = {
    "another program": (attribute("format", "other"), "not of scdd.*give the path"),
    "no format": (without("format"), "not of scdd"),
    "newer version": (attribute("format_version", 2), "format version is 2.*newer scdd"),
    "version as text": (attribute("format_version", "one"), "format version is one"),
    "not complete": (attribute("complete", False), "never finished; rerun the step"),
    "unknown kind": (attribute("kind", "sparse"), "kind 'sparse' is unknown.*newer scdd"),
    "unknown target": (
        attribute("target_kind", "caption"),
        "target_kind 'caption' is unknown.*newer scdd",
    ),
    "factored images with class labels": (
        attribute("kind", "factored"),
        "kind, pixel_space or image_count are of representations, which target_kind is not",
    ),
    "representations in name alone": (
        attribute("target_kind", "representation"),
        "attribute 'pixel_space' is missing",
    ),
    "float16 images": (
        replaced("images", data=np.zeros((6, 3, 8, 8), "<f2")),
        "'images' holds float16, not uint8",
    ),
    "unknown operation": (
        attribute("ops", json.dumps(["crop", "solarise"]), "views"),
        "operation 'solarise' is unknown here; it needs a newer scdd",
    ),
    "other order": (
        attribute("ops", json.dumps(["flip", "crop", "mixup"]), "views"),
        "in this order are unknown",
    ),
    "both mixes": (
        attribute("ops", json.dumps(["crop", "flip", "mixup", "cutmix"]), "views"),
        "operations .* are unknown",
    ),
    "unknown codec": (
        attribute("codec", "int3", "soft_labels"),
        "codec 'int3' is unknown here; it needs a newer scdd",
    ),
    "codec without what it needs": (
        attribute("codec", "topk", "soft_labels"),
        "top of codec 'topk' is None, not a number",
    ),
    "codec with an attribute of another": (
        attribute("top", 2, "soft_labels"),
        "codec 'full' has no top",
    ),
    "soft link": (linked("labels", h5py.SoftLink("/kept")), "unknown|link"),
    "external link": (linked("labels", h5py.ExternalLink("other.h5", "/labels")), "unknown|link"),
    "virtual": (virtual, "'labels' keeps its values in another file"),
    "external storage": (
        replaced("labels", shape=(6,), dtype="<i4", external=[("raw.bin", 0, 24)]),
        "'labels' keeps its values in another file",
    ),
    "compressed": (
        replaced("labels", data=np.arange(6, dtype="<i4") % 3, compression="gzip"),
        "'labels' is compressed.*newer scdd",
    ),
    "huge": (
        replaced("soft_labels/logits", shape=(10**9, 6, 3), dtype="<f2", chunks=(1, 6, 3)),
        "not \\[4, 6, 3\\]",
    ),
    "huge chunk": (
        replaced(
            "views/crop", shape=(4, 6, 4), maxshape=(None,) * 3, dtype="<i2", chunks=(10**8, 6, 1)
        ),
        "but the file has",
    ),
    "no values": (
        replaced("labels", shape=(6,), dtype="<i4", chunks=(2,)),
        "'labels' lacks some of its values",
    ),
    "late contiguous": (replaced("labels", shape=(6,), dtype="<i4"), "lacks some of its values"),
    "wrong dtype": (
        replaced("labels", data=np.arange(6, dtype="<i8") % 3),
        "'labels' holds int64, not int32",
    ),
    "other byte order": (replaced("labels", data=np.array([0, 1, 2, 0, 1, 2], ">i4")), "holds >i4"),
    "wrong shape": (
        replaced("labels", data=np.zeros(5, "<i4")),
        r"'labels' has shape \[5\], not \[6\]",
    ),
    "wrong rank": (replaced("labels", data=np.zeros((6, 1), "<i4")), r"has shape \[6, 1\]"),
    "group for dataset": (
        lambda root: (root.__delitem__("labels"), root.create_group("labels"))[0],
        "'labels' is not a dataset",
    ),
    "missing dataset": (without("labels"), "'labels' is missing"),
    "missing parameter": (without("crop", "views"), "'views/crop' is missing"),
    "unknown dataset": (
        lambda root: root.__setitem__("more", [1]),
        "'more' is unknown to format version 1; it needs a newer scdd",
    ),
    "missing attribute": (without("mean"), "attribute 'mean' is missing"),
    "missing hash": (without("sha256", "labels"), "attribute 'sha256' of 'labels' is missing"),
    "attribute not JSON": (attribute("config", "{"), "attribute 'config' is not JSON"),
    "deep JSON": (attribute("config", "[" * 60000), "'config' is not JSON"),
    "JSON with NaN": (attribute("mean", "[NaN, 0, 0]"), "'mean' is not JSON"),
    "attribute is an array": (attribute("method", np.zeros(3)), "'method' is not a single value"),
    "attribute is a number": (attribute("method", 3), "'method' is not a text"),
    "attribute is a fraction": (attribute("seed", 0.5), "'seed' is neither"),
    "mean of two": (attribute("mean", "[0.1, 0.2]"), "mean is not three"),
    "text for mean": (attribute("mean", '"abc"'), "'mean' is not a list"),
    "text in mean": (attribute("mean", '["a", "b", "c"]'), "the header says"),
    "std of zero": (attribute("std", "[0.1, 0.2, 0]"), "std is not positive"),
    "ipc and budget": (attribute("budget_n", "6"), "exactly one of ipc and budget_n"),
    "huge ipc": (attribute("ipc", str(10**15)), r"has shape \[6, 3, 8, 8\], not"),
    "negative padding": (attribute("padding", -1, "views"), "'padding' of 'views'"),
    "other seed": (attribute("seed", 1), "does not match the digest"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_misleading_file_is_refused_in_one_sentence(file: Path, case: str):
    change, wanted = CASES[case]
    with h5py.File(file, "r+") as root:
        change(root)
    with pytest.raises(FormatError, match=wanted) as caught:
        read_header(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: ") and "; " in text and "\n" not in text
    assert len(verify(file)) == 1


@pytest.mark.parametrize(
    "link", [h5py.SoftLink("/images_kept"), h5py.ExternalLink("other.h5", "/labels")]
)
def test_a_link_under_a_right_name_is_refused(file: Path, link: object):
    with h5py.File(file, "r+") as root:
        del root["labels"]
        root["labels"] = link
    with pytest.raises(FormatError, match="'labels' is a link"):
        DistilledFile(file)


def test_a_declared_shape_of_ten_terabytes_is_refused_before_it_is_read(file: Path):
    with h5py.File(file, "r+") as root:
        for name in ("views/crop", "views/flip", "views/lambda", "views/partner"):
            tail = root[name].shape[1:]
            replaced(name, shape=(10**11, *tail), dtype=root[name].dtype, chunks=(10**4, *tail))(
                root
            )
    with pytest.raises(FormatError, match="claims 4800000000000 bytes, but the file has"):
        DistilledFile(file)


def test_a_missing_file_a_folder_and_other_files_are_refused(tmp_path: Path):
    text = tmp_path / "notes.txt"
    text.write_text("not a distilled file")
    (tmp_path / "empty.h5").touch()
    with h5py.File(tmp_path / "foreign.h5", "w") as root:
        root["images"] = [1]
    for name, wanted in {
        "absent.h5": "there is no such file; check the path",
        ".": "this is not a file",
        "notes.txt": "this is not an HDF5 file",
        "empty.h5": "the file is cut off",
        "foreign.h5": "not of scdd",
    }.items():
        for use in (read_header, DistilledFile):
            with pytest.raises(FormatError, match=wanted):
                use(tmp_path / name)
        assert len(verify(tmp_path / name)) == 1


def test_a_file_on_a_read_only_medium_can_be_read(file: Path):
    file.chmod(0o444)
    file.parent.chmod(0o555)
    try:
        assert read_header(file).method == "scdd"
    finally:
        file.parent.chmod(0o755)


def test_a_view_that_is_not_stored_is_a_mistake_of_the_caller(file: Path):
    with DistilledFile(file) as opened:
        for view in (-1, 4):
            with pytest.raises(ValueError, match="not one of the 4 stored"):
                opened.logits(view)


def test_inspect_shows_odd_texts_without_obeying_them(tmp_path: Path, content: Callable[..., Any]):
    path = tmp_path / "odd.h5"
    about = {
        "class_names": ("\x1b[2J\x07", "two\nlines", "c"),
        "teacher": {"arch": "resnet8\r", "val_top1": "very good"},
    }
    content(about=about).write(path)
    shown = describe(path, thorough=True)
    assert all(letter.isprintable() for line in shown.split("\n") for letter in line)
    assert shown.split("\n")[-1].startswith("  verified")
    assert "validation top-1 unknown" in shown
