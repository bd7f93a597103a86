"""Mutated files, read by another process: no crash, no hang, and verified means unchanged."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scdd.config.relabel import RelabelConfig
from scdd.distilled import write_pairs
from tests.distilled.random_sets import header_for, random_dense, random_set

ROOT = Path(__file__).resolve().parents[2]
SECONDS_A_FILE = 20
"""Of the processor, so that a machine at work elsewhere is not taken for a hang."""

# Prints a line per file: its number, whether verify is content, and a digest of all it says, or the
# sentence of the refusal. What is not a FormatError ends the process.
READ = """
import hashlib, signal, sys
from pathlib import Path
from scdd.distilled import DistilledDataset, DistilledFile, RepresentationDataset, verify
from scdd.distilled.pairs import stored_parts
from scdd.errors import FormatError
import json, torch

for path in map(Path, sys.argv[2:]):
    signal.setitimer(signal.ITIMER_PROF, int(sys.argv[1]))
    verified = not verify(path)
    try:
        said = hashlib.sha256()
        with DistilledFile(path) as file:
            said.update(repr(file.header).encode())
            pairs = file.pairs() if file.header.represented else None
            tensors = [file.labels()]
            tensors += [file.images()] if pairs is None else [*stored_parts(pairs).values()]
            if file.views is not None:
                said.update(repr((file.views.ops, file.views.padding)).encode())
                tensors += [file.views.parameters[name] for name in sorted(file.views.parameters)]
            if file.codec is not None:
                said.update(repr((file.codec.name, file.codec.attributes)).encode())
                if file.codec.layout:
                    tensors += [file.logits(view) for view in range(file.num_views)]
        for tensor in tensors:
            said.update(tensor.numpy().tobytes())
        if pairs is None:
            data = DistilledDataset.open(path)
            epoch = data.epoch(0, max(data._group_sizes or [2]), torch.Generator())
        else:
            epoch = RepresentationDataset.open(path).epoch(3, torch.Generator())
        for _ in epoch:
            pass
        found = said.hexdigest()
    except FormatError as error:
        found = str(error)
    print(json.dumps([path.name, verified, found]), flush=True)
signal.setitimer(signal.ITIMER_PROF, 0)
"""


def read(paths: list[Path]) -> dict[str, tuple[bool, str]]:
    """What another process reads of each file."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(SECONDS_A_FILE), *map(str, paths)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    last = paths[len(lines)].name if len(lines) < len(paths) else "none"
    assert done.returncode == 0, f"ended by {done.returncode} at {last}: {done.stderr[-2000:]}"
    return {name: (verified, found) for name, verified, found in lines}


def overwrite(data: bytearray, draw: random.Random) -> None:
    """A run of bytes becomes noise, zeros or ones."""
    at, length = draw.randrange(len(data)), draw.choice([1, 2, 4, 8, 64, 512])
    end = min(at + length, len(data))
    data[at:end] = draw.choice([draw.randbytes(end - at), bytes(end - at), b"\xff" * (end - at)])


def copy_over(data: bytearray, draw: random.Random) -> None:
    """A piece is written over another place, as a lost or doubled disk block would be."""
    length = draw.choice([8, 64, 512, 4096])
    source, target = draw.randrange(len(data)), draw.randrange(len(data))
    piece = data[source : source + min(length, len(data) - target)]
    data[target : target + len(piece)] = piece


def insert(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data))
    data[at:at] = draw.randbytes(draw.choice([1, 8, 100]))


def remove(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data))
    del data[at : at + draw.choice([1, 8, 100])]


def cut(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def flip_bits(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice([1, 2, 10])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def enlarge_a_number(data: bytearray, draw: random.Random) -> None:
    """Eight bytes become a size that nobody has memory for."""
    at = draw.randrange(len(data) - 8)
    data[at : at + 8] = draw.choice([2**31, 2**40, 2**62, 2**64 - 2]).to_bytes(8, "little")


MUTATIONS: list[Callable[[bytearray, random.Random], None]] = [
    overwrite,
    copy_over,
    insert,
    remove,
    cut,
    flip_bits,
    enlarge_a_number,
]


def check_mutations(whole: Path, folder: Path, count: int, seed: int) -> None:
    data, draw = whole.read_bytes(), random.Random(seed)
    files = []
    for number in range(count):
        mutated = bytearray(data)
        MUTATIONS[number % len(MUTATIONS)](mutated, draw)
        files.append(folder / f"{number}.h5")
        files[-1].write_bytes(mutated)
    found = read([whole, *files])
    verified, wanted = found.pop(whole.name)
    assert verified and len(wanted) == 64
    assert len(found) == count
    for name, (verified, said) in found.items():
        if verified:
            assert said == wanted, f"{name} is verified and says something else"
        elif len(said) != 64:
            path = folder / name
            assert said.startswith(f"{path}: ") and "; " in said and "\n" not in said


CONTENTS = {
    "full": {"cfg": RelabelConfig(mix="cutmix", teacher_bn="batch", group=3)},
    "int8": {"cfg": RelabelConfig(mix="mixup"), "codec": "int8"},
    "int4": {"cfg": RelabelConfig(), "classes": 5, "codec": "int4"},
    "topk": {"cfg": RelabelConfig(mix="cutmix", crop="padded"), "codec": "topk", "top": 2},
    "hard": {"cfg": RelabelConfig(), "codec": "hard"},
    "images alone": {"cfg": None, "ipc": None},
}


PAIRS = {
    "factored": random_set(stored=True),
    "dense pairs": random_dense(),
    "dense pixels": random_dense(pixels=torch.uint8, dtype=torch.float16, turns=(0,)),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_a_mutated_file_of_representations_is_refused_or_unchanged(tmp_path: Path, kind: str):
    write_pairs(tmp_path / "whole.h5", header_for(PAIRS[kind]), PAIRS[kind])
    check_mutations(tmp_path / "whole.h5", tmp_path, count=140, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAIRS)
def test_many_mutated_files_of_representations_are_refused_or_unchanged(tmp_path: Path, kind: str):
    write_pairs(tmp_path / "whole.h5", header_for(PAIRS[kind]), PAIRS[kind])
    for seed in range(1, 4):
        check_mutations(tmp_path / "whole.h5", tmp_path, count=500, seed=seed)


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_mutated_file_is_is_refused_or_unchanged(content, tmp_path: Path, kind: str):
    content(**CONTENTS[kind]).write(tmp_path / "whole.h5")
    check_mutations(tmp_path / "whole.h5", tmp_path, count=140, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONTENTS)
def test_many_mutated_files_are_refused_or_unchanged(content, tmp_path: Path, kind: str):
    content(**CONTENTS[kind]).write(tmp_path / "whole.h5")
    for seed in range(1, 4):
        check_mutations(tmp_path / "whole.h5", tmp_path, count=500, seed=seed)
