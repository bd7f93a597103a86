"""What both kinds of dataset have in common: the header of their file, and positions in them."""

import operator

from scdd.config.section import Triple
from scdd.distilled.format import Header


class Described:
    """A dataset that a header describes."""

    header: Header

    @property
    def mean(self) -> Triple:
        """Mean per channel that images are normalised by."""
        return self.header.mean

    @property
    def std(self) -> Triple:
        """Standard deviation per channel that images are normalised by."""
        return self.header.std

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.header.image_size


def position(index: int, count: int, what: str) -> int:
    """A position counted from 0, as lists understand an index.

    Raises:
        IndexError: if there are only `count`.
    """
    row = operator.index(index)
    if not -count <= row < count:
        raise IndexError(f"there are {count} {what}, but number {row} was asked for")
    return row % count
