"""The preflight gate: a teacher that hardly beats guessing is refused before hours go into it."""

from typing import NamedTuple

from scdd.config.probe import ProbeConfig
from scdd.errors import RunError

MARGIN = 10.0
"""Points below its published accuracy at which a checkpoint counts as wrongly used."""


class Floor(NamedTuple):
    """The accuracy that a teacher must reach."""

    top1: float
    """Per cent."""
    origin: str
    """Where the figure comes from, in words."""


def accuracy_floor(cfg: ProbeConfig, num_classes: int, expected_top1: float | None = None) -> Floor:
    """Return what the user has set, else the higher one of guessing and what was published.

    Args:
        cfg: its `floor`, if set, stands above all else.
        num_classes: C; guessing is right for 100 / C per cent.
        expected_top1: published accuracy of the checkpoint in per cent, if there is one.
    """
    if cfg.floor is not None:
        return Floor(cfg.floor, "probe.floor")
    guessing = 100 / num_classes
    doubled, halfway = 2 * guessing, (guessing + 100) / 2
    floor = (
        Floor(doubled, f"twice guessing among {num_classes} classes")
        if doubled <= halfway
        else Floor(halfway, f"halfway from guessing among {num_classes} classes to 100 %")
    )
    if expected_top1 is None:
        return floor
    published = f"{MARGIN:g} points below the {expected_top1:.1f} % published for this checkpoint"
    return max(floor, Floor(expected_top1 - MARGIN, published))


def check_teacher(top1: float, images: int, floor: Floor, labeller: str | None = None) -> None:
    """Refuse a teacher whose accuracy on the `images` validation images is below the floor.

    `labeller` is the architecture, if it is one of `squeeze_labellers`.

    Raises:
        RunError: with the accuracy, the floor, the usual causes and what to do.
    """
    if top1 >= floor.top1:
        return
    step, name, squeeze = (
        ("probe", "the teacher", "squeeze")
        if labeller is None
        else ("probe_labellers", f"the labeller {labeller}", "squeeze_labellers")
    )
    raise RunError(
        f"{step}: {name} classifies {top1:.1f} % of the {images} validation images right, less "
        f"than {floor.top1:.1f} % ({floor.origin}); the usual causes are classes in another "
        "order in val/ than in train/, a loaded checkpoint with another stem or other pixel "
        "statistics than it was trained with, or too short a squeeze: mend it and run again with "
        f"--redo {squeeze}, or go on with it by --set probe.floor=0 --redo probe"
    )
