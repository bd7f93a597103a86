"""Image folders: order, statistics, identity, and every way in which one can be wrong."""

import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from scdd.config.dataset import DatasetConfig
from scdd.datasets import check_dataset, load_dataset, load_split
from scdd.errors import DataError


def config(root, **changed) -> DatasetConfig:
    return DatasetConfig(**({"name": "image_folder", "root": str(root), "image_size": 8} | changed))


def load(root, **changed):
    return load_dataset(config(root, **changed))


def refused(root, *words: str, **changed) -> None:
    """Check that loading is refused in one line that holds `words`, and checking likewise."""
    with pytest.raises(DataError) as caught:
        load(root, **changed)
    said = str(caught.value)
    assert "\n" not in said
    for word in words:
        assert re.search(word, said), said
    if "cannot be read as an image" in said:  # Which decoding alone can find.
        check_dataset(config(root, **changed))
        return
    with pytest.raises(DataError, match=re.escape(said)):
        check_dataset(config(root, **changed))


def test_images_come_with_their_labels_in_the_order_of_torchvision(write_folder):
    root, _ = write_folder(classes=("bee", "Ant", "cow 2"))
    nested = root / "train" / "Ant"
    for name in ("sub/z.png", "sub-1/a.png", "sub/deep/b.png", "UPPER.PNG"):
        (nested / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(nested / "000.png", nested / name)
    Image.new("RGB", (8, 8), (9, 8, 7)).save(nested / "sub" / "y.png")
    dataset = load(root)
    for source, split in ((dataset.train, "train"), (dataset.val, "val")):
        reference = ImageFolder(root / split)
        assert source.classes == tuple(reference.classes)
        assert source.labels.tolist() == reference.targets
        expected = np.stack([np.asarray(image) for image, _ in reference]).transpose(0, 3, 1, 2)
        assert np.array_equal(source.read(torch.arange(len(source))).numpy(), expected)


def test_hidden_files_and_files_that_are_no_images_are_ignored(write_folder):
    root, _ = write_folder()
    plain = load(root)
    (root / ".DS_Store").write_bytes(b"x")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "readme.txt").write_text("x")
    (root / "train" / "ant" / "Thumbs.db").write_bytes(b"x")
    (root / "train" / "ant" / "._000.png").write_bytes(b"x")
    (root / "train" / "ant" / ".hidden").mkdir()
    (root / "train" / "ant" / ".hidden" / "0.png").write_bytes(b"x")
    found = load(root)
    assert found.digest == plain.digest
    assert torch.equal(found.train.images, plain.train.images)


def test_a_link_back_to_a_parent_folder_is_not_followed_for_ever(write_folder):
    root, _ = write_folder()
    (root / "train" / "ant" / "again").symlink_to(root / "train" / "ant")
    assert len(load(root).train) == 10


def test_class_folders_may_be_links(write_folder, tmp_path):
    root, _ = write_folder()
    plain = load(root)
    shutil.move(root / "val", tmp_path / "elsewhere")
    (root / "val").symlink_to(tmp_path / "elsewhere")
    assert torch.equal(load(root).val.images, plain.val.images)


def test_statistics_are_those_of_numpy_over_the_raw_training_pixels(write_folder):
    root, pixels = write_folder(train=7)
    raw = np.stack([x for name, x in pixels.items() if name.startswith("train")]) / 255.0
    dataset = load(root)
    np.testing.assert_allclose(dataset.mean, raw.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, raw.std((0, 1, 2)), rtol=1e-12)
    assert (dataset.val.mean, dataset.val.std) == (dataset.mean, dataset.std)


def test_given_statistics_replace_the_measured_ones_one_by_one(write_folder):
    root, _ = write_folder()
    measured = load(root)
    mixed = load(root, mean=(0.1, 0.2, 0.3))
    assert (mixed.mean, mixed.std) == ((0.1, 0.2, 0.3), measured.std)
    assert load(root, std=(0.1, 0.2, 0.3)).mean == measured.mean


def test_a_constant_channel_can_still_be_divided_by_its_deviation(tmp_path):
    for split in ("train", "val"):
        (tmp_path / "flat" / split / "a").mkdir(parents=True)
        Image.new("RGB", (8, 8), (0, 255, 128)).save(tmp_path / "flat" / split / "a" / "0.png")
    dataset = load(tmp_path / "flat")
    np.testing.assert_allclose(dataset.mean, [0, 1, 128 / 255], rtol=1e-12)
    assert min(dataset.std) > 0


def test_images_of_any_size_are_brought_to_the_asked_one(tmp_path):
    for split in ("train", "val"):
        (tmp_path / "mixed" / split / "a").mkdir(parents=True)
        for number, size in enumerate([(8, 8), (40, 13), (100, 300)]):
            path = tmp_path / "mixed" / split / "a" / f"{number}.jpg"
            Image.new("RGB", size, (200, 100, 50)).save(path, quality=95)
    images = load(tmp_path / "mixed", image_size=10).train.images
    assert images.shape == (3, 3, 10, 10)
    assert (images.int() - torch.tensor([200, 100, 50])[:, None, None]).abs().max() <= 3


def test_holdout_divides_train_and_never_looks_at_val(write_folder):
    root, pixels = write_folder(train=10)
    shutil.rmtree(root / "val")
    dataset = load(root, holdout=0.3)
    assert dataset.train.labels.bincount().tolist() == [7, 7]
    assert dataset.val.labels.bincount().tolist() == [3, 3]
    found = torch.cat([dataset.train.images, dataset.val.images]).permute(0, 2, 3, 1).numpy()
    expected = [x for name, x in pixels.items() if name.startswith("train")]
    assert sorted(x.tobytes() for x in found) == sorted(x.tobytes() for x in expected)


def test_held_out_images_keep_their_labels(write_folder):
    root, pixels = write_folder(train=10)
    dataset = load(root, holdout=0.3, train_per_class=4)
    for source, count in ((dataset.train, 8), (dataset.val, 6)):
        assert len(source) == count
        for image, label in zip(source.images, source.labels.tolist(), strict=True):
            raw = image.permute(1, 2, 0).numpy()
            names = [name for name, x in pixels.items() if np.array_equal(x, raw)]
            assert names[0].split("/")[:2] == ["train", source.classes[label]]


def test_train_per_class_takes_the_first_files_and_leaves_val_alone(write_folder):
    root, pixels = write_folder(train=5, val=4)
    dataset = load(root, train_per_class=2)
    assert len(dataset.val) == 8
    expected = [pixels[f"train/{c}/{n:03}.png"] for c in ("ant", "bee") for n in (0, 1)]
    assert np.array_equal(dataset.train.images.permute(0, 2, 3, 1).numpy(), np.stack(expected))


def test_the_digest_changes_with_a_file_and_with_its_time(write_folder):
    root, _ = write_folder()
    digests = {load(root).digest}
    assert load(root).digest in digests
    path = root / "train" / "ant" / "000.png"
    os.utime(path, ns=(0, 12345))
    digests.add(load(root).digest)
    Image.new("RGB", (8, 8)).save(path)
    os.utime(path, ns=(0, 12345))
    digests.add(load(root).digest)
    path.rename(path.with_name("0000.png"))
    digests.add(load(root).digest)
    (root / "val" / "ant" / "000.png").unlink()
    digests.add(load(root).digest)
    assert len(digests) == 5


def test_the_digest_does_not_change_when_the_folder_moves(write_folder, tmp_path):
    root, _ = write_folder()
    digest = load(root).digest
    shutil.copytree(root, tmp_path / "copy")
    root.rename(tmp_path / "moved")
    assert load(tmp_path / "moved").digest == digest
    assert load(tmp_path / "copy").digest == digest


def test_the_digest_covers_the_settings_that_change_what_is_seen(write_folder):
    root, _ = write_folder()
    changes = [{}, {"image_size": 9}, {"holdout": 0.5}, {"holdout": 0.4}, {"train_per_class": 2}]
    assert len({load(root, **change).digest for change in changes}) == len(changes)
    assert load(root, mean=(0.1, 0.1, 0.1)).digest == load(root).digest


def test_one_split_can_be_loaded_alone_with_known_statistics(write_folder):
    root, _ = write_folder()
    whole = load(root)
    shutil.rmtree(root / "train")
    val = load_split(root, "val", 8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert torch.equal(val.read(torch.arange(4)), whole.val.images)
    assert val.labels.tolist() == whole.val.labels.tolist() and val.classes == whole.classes
    assert (val.mean, val.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    with pytest.raises(DataError, match=r"has no train/ \(found: val\)"):
        load_split(root, "train", 8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_no_root_is_refused():
    refused("", "dataset.root: image_folder needs a folder with train/<class>")


def test_a_missing_root_is_named(tmp_path):
    refused(tmp_path / "none", "none does not exist", "train/<class>/<image>")


def test_an_archive_as_root_is_refused(tmp_path):
    (tmp_path / "set.tar.gz").write_bytes(b"x")
    refused(tmp_path / "set.tar.gz", "set.tar.gz is a file", "unpack")


def test_a_root_without_val_says_what_is_there_and_how_to_do_without(write_folder):
    root, _ = write_folder()
    (root / "val").rename(root / "test")
    refused(root, "has no val/", "found: test, train", "val/<class>", "dataset.holdout")


def test_a_root_without_train_and_val_says_what_is_there(tmp_path):
    for number in range(8):
        (tmp_path / "wrong" / f"folder{number}").mkdir(parents=True)
    refused(tmp_path / "wrong", "no train/ and no val/", "folder0, .*folder4 and 3 more")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "found: nothing")


def test_different_classes_in_train_and_val_are_named_on_both_sides(write_folder):
    root, _ = write_folder(classes=("ant", "bee", "cow"))
    (root / "val" / "ant").rename(root / "val" / "emu")
    refused(root, "only in train/: ant", "only in val/: emu")
    shutil.rmtree(root / "val" / "emu")
    refused(root, "only in train/: ant", "only in val/: nothing")


def test_a_split_without_class_folders_is_refused(tmp_path):
    for split in ("train", "val"):
        (tmp_path / "flat" / split).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "flat" / split / "0.png")
    refused(tmp_path / "flat", "train holds no class folders", r"found: 0\.png")


def test_an_empty_class_folder_is_named(write_folder):
    root, _ = write_folder()
    (root / "train" / "cat").mkdir()
    refused(root, "train/cat holds no image", "found: nothing", r"\.jpeg .*\.webp")
    (root / "train" / "cat" / "a.gif").write_bytes(b"GIF89a")
    refused(root, "train/cat holds no image", r"found: a\.gif")


def test_an_unreadable_image_in_a_folder_is_named(write_folder):
    root, _ = write_folder()
    path = root / "val" / "bee" / "001.png"
    path.write_bytes(path.read_bytes()[:-30])
    refused(root, "val/bee/001.png: cannot be read as an image")


def test_a_dangling_link_in_a_folder_is_named(write_folder):
    root, _ = write_folder()
    (root / "train" / "ant" / "gone.png").symlink_to(root / "nowhere.png")
    refused(root, r"ant/gone\.png: cannot be reached")


def test_a_class_name_that_is_no_text_is_refused(write_folder):
    root, _ = write_folder()
    try:
        os.rename(root / "train" / "ant", os.fsencode(root) + b"/train/\xff\xfe")
    except OSError:
        pytest.skip("this file system takes no such names")
    refused(root, "no UTF-8 name")


def test_a_class_too_small_for_holdout_is_named(write_folder):
    root, _ = write_folder(train=1)
    refused(root, "class 'ant' has 1 training image", holdout=0.5)


def test_statistics_that_cannot_be_meant_are_refused_by_the_configuration():
    for wrong in ({"mean": (125.3, 123.0, 113.9)}, {"std": (0.0, 0.2, 0.2)}, {"std": (63, 62, 67)}):
        with pytest.raises(ValueError):
            config("anywhere", **wrong)
