"""Closed files of parts of a step's work: what a kill leaves is gone on with."""

from pathlib import Path


def finished(shards: Path) -> list[Path]:
    """Shards in order, without what a kill left half-written beside them."""
    return sorted(shards.glob("*.safetensors"))


def remove_shards(folder: Path) -> None:
    """Shards are our own and their content is in a finished file."""
    if folder.exists():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
