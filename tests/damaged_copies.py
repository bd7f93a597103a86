"""Damage that a disk or a download leaves in a file, which is then read or refused."""

import random
from collections.abc import Callable
from pathlib import Path

from scdd.errors import CheckpointError


def assert_read_or_refused(path: Path, trials: int, read: Callable[[], object]) -> None:
    """Call `read` once a trial on a damaged copy at `path`: cut short, or with one bit flipped.

    It may return, or raise a CheckpointError that begins with the path, and nothing else.
    """
    whole, dice = path.read_bytes(), random.Random(1)
    for trial in range(trials):
        data = bytearray(whole)
        if trial % 3 == 0:
            del data[dice.randrange(len(data)) :]
        else:
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
        try:
            read()
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: ")
