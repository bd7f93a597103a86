"""A configuration file to write, and the sentence that one is refused with."""

from pathlib import Path
from typing import Any

import pytest

from scdd.config.load import load_config
from scdd.errors import ConfigError


@pytest.fixture
def write(tmp_path: Path):
    """Return `write(text)`, which makes a YAML file and gives its path as text."""

    def write(text: str | bytes) -> str:
        path = tmp_path / "my.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


def refusal(*args: Any) -> str:
    """The one sentence that `load_config` refuses its arguments with."""
    with pytest.raises(ConfigError) as caught:
        load_config(*args)
    return str(caught.value)
