"""What a reader that runs pickled code would run."""

import os
from pathlib import Path
from typing import Any


class Code:
    """Creates a folder when it is unpickled by a reader that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)
