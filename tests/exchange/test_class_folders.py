"""Folder names for class names that anyone may have written."""

import unicodedata
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdd.errors import DataError
from scdd.exchange.class_folders import (
    ClassFolder,
    folder_names,
    read_classes,
    write_classes,
)

NAMES = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.sampled_from(["con", "CON.txt", "a.", "a ", "A", "a", "..", "/", "\\", "_", "lpt1"]),
        st.text(min_size=200, max_size=300),
    ),
    max_size=12,
)


@given(NAMES)
def test_folder_names_are_different_and_safe_on_every_disk(names: list[str]):
    found = folder_names(names)
    assert len(found) == len(names)
    # Apple's disks compare without case and in one normal form of letters.
    alike = {unicodedata.normalize("NFC", name.casefold()) for name in found}
    assert len(alike) == len(found)
    for name in found:
        assert name.isprintable() and len(name.encode()) < 256
        assert not set(name) & set('<>:"/\\|?*')
        assert name[0] not in ". " and name[-1] not in ". "
        windows = PureWindowsPath(name)
        assert not windows.is_reserved() and windows.name == name


def test_a_name_that_is_safe_stays_whatever_comes_before_it():
    assert folder_names(["a/b", "a_b", "A_B"]) == ["a_b_3", "a_b", "A_B_2"]
    assert folder_names(["", "con", "aux.h5"]) == ["_", "_con", "_aux.h5"]


def test_long_names_of_many_bytes_become_folders(tmp_path: Path):
    for name in folder_names(["\u00e9" * 300, "\u00e9" * 301, "x" * 1000]):
        (tmp_path / name).mkdir()
    assert len(list(tmp_path.iterdir())) == 3


def test_classes_are_read_as_they_were_written(tmp_path: Path):
    classes = [
        ClassFolder("b", "b\x1b/", 0, 2),
        ClassFolder("a", "", 1, 0),
        ClassFolder("no_class", None, -1, 3),
    ]
    write_classes(tmp_path / "classes.json", classes)
    assert read_classes(tmp_path / "classes.json") == classes


def test_a_file_of_that_name_by_others_is_not_taken_for_ours(tmp_path: Path):
    path = tmp_path / "classes.json"
    assert read_classes(path) is None
    for text in ('{"0": ["n01440764", "tench"]}', "[1, 2]"):
        path.write_text(text)
        assert read_classes(path) is None


@pytest.mark.parametrize(
    "folders",
    [
        '{"a": {"name": "a", "label": 1, "images": 1}}',
        '{"a": {"name": "a", "label": true, "images": 1}}',
        '{"a": {"name": "a", "label": 0, "images": -1}}',
        '{"a": {"name": null, "label": 0, "images": 1}}',
        '{"a": {"name": "a", "label": 0}}',
        '{"a": 3}',
        "[]",
        "{}",
        "{",
    ],
)
def test_damage_is_one_sentence(folders: str, tmp_path: Path):
    path = tmp_path / "classes.json"
    path.write_text(f'{{"format": "scdd class folders", "folders": {folders}}}')
    with pytest.raises(DataError, match=r"classes\.json: .*; (export the images again|repair)"):
        read_classes(path)
