"""The index of an image folder: any names, order of torchvision, digests as they always were."""

import hashlib
import os
import tempfile
import tracemalloc
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.datasets import ImageFolder

from scdd.config.dataset import DatasetConfig
from scdd.datasets import load_dataset
from scdd.datasets.file_index import index_files
from scdd.datasets.image_folder import read_split

# What a file system takes, undecodable bytes and line breaks included.
letters = st.characters(exclude_characters="/\0", exclude_categories=("Cs",))
undecodable = st.sampled_from([chr(0xDC80 + byte) for byte in (0, 1, 127)])
words = st.text(letters | undecodable, min_size=1, max_size=12).filter(lambda w: w[0] != ".")
names = words.map(lambda word: word + ".png")
# Neighbours of the slash in the order of bytes, where sorting by name and by folder differ.
tricky = st.sampled_from(["a", "a-", "a0", "a.png", "A", "ab", "a-b"])
class_names = st.text(letters, min_size=1, max_size=8).filter(lambda w: w[0] != ".") | tricky
nested = st.lists(words | tricky, max_size=2).map(tuple)
trees = st.dictionaries(
    class_names,
    st.lists(st.tuples(nested, names), min_size=1, max_size=5),
    min_size=1,
    max_size=4,
)


def plant(folder: Path, tree: dict[str, list[tuple[tuple[str, ...], str]]]) -> list[Path]:
    """Write the files of a tree; where a file is in the way of a folder, leave the folder out."""
    for name, files in tree.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for parents, file in files:
            parent = folder.joinpath(name, *parents)
            try:
                parent.mkdir(parents=True, exist_ok=True)
                (parent / file).write_bytes(file.encode(errors="surrogateescape"))
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                (folder / name / "other.png").touch()
    return [Path(path) for path, _ in ImageFolder(folder).samples]


def plain_digest(root: Path, paths: list[Path]) -> str:
    """Over all files at once, sorted: the definition."""
    lines = []
    for path in paths:
        status = path.stat()
        name = os.fsencode(path.relative_to(root))
        lines.append(name + f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return hashlib.sha256(b"".join(sorted(lines))).hexdigest()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees)
def test_any_tree_is_indexed_in_the_order_of_torchvision_with_the_digest_of_its_files(
    tmp_path: Path, tree
):
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    paths = plant(root / "train", tree)
    reference = ImageFolder(root / "train")
    classes, split = read_split(root, "train", 8)
    assert split.files is not None
    assert list(classes) == reference.classes
    assert split.labels.dtype == torch.int64 and split.labels.tolist() == reference.targets
    assert [split.files.path(row) for row in range(len(split.files))] == list(map(str, paths))
    assert split.digest == plain_digest(root, paths)


def test_digests_are_those_of_earlier_versions(tmp_path: Path):
    number = 0
    for split in ("train", "val"):
        for name in ("ant", "ant-1", "bee 2/sub-1", "bee 2/sub", "\u00e9"):
            for file in ("1.png", "10.png", "a b.ppm"):
                path = tmp_path / split / name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"P6 8 8 255\n" + bytes(192))
                number += 1
                os.utime(path, ns=(0, 10**18 + number))

    def digest(**changed: float) -> str:
        cfg = {"name": "image_folder", "root": str(tmp_path), "image_size": 8} | changed
        return load_dataset(DatasetConfig.model_validate(cfg)).digest

    assert digest() == "f90ba8c510e3fdf6e5d4a5065b81ec150e5fa3701076eb77a9b34cc6005a5cae"
    assert digest(holdout=0.4) == "587665b92ec4846419dc72ab1cb20a9866148293e9035327cfaecbd825171d86"
    assert digest(train_per_class=1) == (
        "2c5f27f035f8590c38042002b8204c0594adff385c7cee1fc28f89ac0227f7ea"
    )


def test_an_image_costs_its_name_and_sixteen_bytes_at_rest_and_little_more_on_the_way(
    tmp_path: Path,
):
    def peak(per_class: int) -> tuple[int, int]:
        files = ((f"n{c}", (f"n{c}_{k:08}.JPEG" for k in range(per_class))) for c in range(10, 60))
        tracemalloc.start()
        index = index_files("imagenet", files)
        for _ in index.names_in_byte_order():
            pass
        resting, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # Labels belong to torch, which tracemalloc does not see.
        labels = index.labels.nbytes
        assert index.path(0) == "imagenet/n10/n10_00000000.JPEG"
        assert index.path(len(index) - 1) == f"imagenet/n59/n59_{per_class - 1:08}.JPEG"
        return resting + labels, highest + labels

    few, many = peak(20), peak(200)
    name = len("n10_00000000.JPEG")
    assert (many[0] - few[0]) / (50 * 180) < name + 16 + 8
    assert (many[1] - few[1]) / (50 * 180) < 100
