"""Decoded images: used when intact, rebuilt when not, never in the way."""

import os
import resource
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from scdd.config.dataset import DatasetConfig
from scdd.datasets import load_dataset
from scdd.datasets.decoded_cache import cache_folder


def load(root: Path, **changed):
    return load_dataset(DatasetConfig(name="image_folder", root=str(root), image_size=8, **changed))


def files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def same(one, other) -> bool:
    return torch.equal(one.train.images, other.train.images) and torch.equal(
        one.val.images, other.val.images
    )


def spoil_sources(root: Path) -> None:
    """Overwrite every image by as many zero bytes, keeping its time: only decoding can tell."""
    for path in root.rglob("*.png"):
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_second_load_gives_identical_tensors_without_reading_an_image(
    write_folder, cache, capsys
):
    root, _ = write_folder()
    first = load(root)
    assert len(files(cache)) == 2
    spoil_sources(root)
    second = load(root)
    assert same(first, second) and first.digest == second.digest and first.mean == second.mean
    assert capsys.readouterr() == ("", "")


def test_a_moved_folder_finds_its_decoded_images(write_folder, tmp_path):
    root, _ = write_folder()
    first = load(root)
    spoil_sources(root)
    root.rename(tmp_path / "moved")
    assert same(first, load(tmp_path / "moved"))


def test_a_changed_image_is_decoded_again(write_folder):
    root, _ = write_folder()
    load(root)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(root / "train" / "ant" / "000.png")
    assert load(root).train.images[0, :, 0, 0].tolist() == [1, 2, 3]


def test_another_size_or_choice_is_another_file(write_folder, cache):
    root, _ = write_folder()
    load(root)
    load(root, train_per_class=2)
    assert len(files(cache)) == 3  # val is shared
    load_dataset(DatasetConfig(name="image_folder", root=str(root), image_size=9))
    assert len(files(cache)) == 5


def test_holdout_uses_the_decoded_images_of_the_whole_train(write_folder, cache):
    root, _ = write_folder()
    load(root)
    spoil_sources(root)
    load(root, holdout=0.4)
    assert len(files(cache)) == 2


def test_the_cache_file_says_what_it_holds(write_folder, cache):
    root, _ = write_folder()
    load(root)
    shapes = []
    for path in files(cache):
        with safe_open(path, framework="np") as opened:
            assert opened.metadata()["classes"] == '["ant", "bee"]'
            shapes.append(opened.get_tensor("images").shape)
            assert opened.get_tensor("labels").shape == shapes[-1][:1]
    assert sorted(shapes) == [(4, 3, 8, 8), (10, 3, 8, 8)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-100],
        lambda whole: whole[:20],
        lambda whole: b"",
        lambda whole: b"something else entirely",
        lambda whole: whole[:-300] + bytes([whole[-300] ^ 1]) + whole[-299:],
    ],
    ids=["truncated", "header cut", "empty", "foreign", "one bit"],
)
def test_a_damaged_cache_file_is_rebuilt_with_one_line(write_folder, cache, capsys, damage):
    root, _ = write_folder()
    first = load(root)
    path = max(files(cache), key=lambda file: file.stat().st_size)
    path.write_bytes(damage(path.read_bytes()))
    assert same(first, load(root))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(path) in said and "decoding them again" in said
    assert same(first, load(root))
    assert capsys.readouterr().err == ""


def test_the_file_of_other_images_is_not_taken(write_folder, cache, capsys):
    root, _ = write_folder()
    first = load(root)
    small, large = sorted(files(cache), key=lambda file: file.stat().st_size)
    large.write_bytes(small.read_bytes())
    assert same(first, load(root))
    assert "of other images" in capsys.readouterr().err


def test_a_cache_folder_that_cannot_be_made_costs_one_line_a_split(
    write_folder, tmp_path, monkeypatch, capsys
):
    root, _ = write_folder()
    first = load(root)
    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.setenv("SCDD_CACHE", str(tmp_path / "file" / "cache"))
    assert same(first, load(root))
    said = capsys.readouterr().err
    assert said.count("\n") == 2 and said.count("cannot be kept in") == 2


def test_a_full_disk_costs_one_line_a_split_and_leaves_no_half_file(write_folder, cache, capsys):
    root, _ = write_folder()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        dataset = load(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert said.count("\n") == 2 and said.count("cannot be kept in") == 2
    assert files(cache) == []
    assert same(dataset, load(root))


def test_nothing_is_ever_written_into_the_source_folder(write_folder, monkeypatch, capsys):
    root, _ = write_folder()
    before = files(root)
    monkeypatch.setenv("SCDD_CACHE", str(root / "cache"))
    assert len(load(root).train) == 10
    assert files(root) == before
    assert "lies inside the dataset" in capsys.readouterr().err


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SCDD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "scdd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "scdd"
