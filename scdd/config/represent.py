"""Represent: recovered images get representations as targets in place of labels."""

from scdd.config.section import Section


class RepresentConfig(Section):
    """Which views of an image have a target."""

    rotations: bool = True
    """All four quarter turns, each with the representation of the image so turned; false: the image
    as it is."""

    @property
    def turns(self) -> tuple[int, ...]:
        """Counter-clockwise quarter turns of the views."""
        return (0, 1, 2, 3) if self.rotations else (0,)
