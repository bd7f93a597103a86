"""What belongs to a distilled file: real validation images, random real images, the newest run.

A file in a run directory has them beside it; any other file is trained on all the same, and what is
missing is said. A path that is written inside a file is never opened.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scdd.config.load import read_run_config
from scdd.datasets import Dataset, ImageSource, load_dataset, load_split
from scdd.datasets.pixel_statistics import with_statistics
from scdd.distilled import Header, read_header, require_classes
from scdd.errors import DataError, FormatError, UserError


@dataclass(frozen=True)
class Companions:
    """Real images to score on, and a baseline file under the same protocol; None where unknown."""

    val: ImageSource | None
    baseline: Path | None
    train: ImageSource | None = None
    """Real images to probe on, where the file holds representations."""
    source: ImageSource | None = None
    """The training images of the run that made such a file."""


def newest_file(runs: Path = Path("runs")) -> Path:
    """The distilled.h5 written last under `runs`.

    Raises:
        UserError: if there is none.
    """
    files = [path for path in runs.glob("*/distilled.h5") if path.is_file()]
    if not files:
        raise UserError(
            f"no distilled.h5 under {runs}/; give a FILE, or make one with 'scdd distill'"
        )
    return max(files, key=lambda path: path.stat().st_mtime)


def companions_of(file: Path, data: Path | None, baseline: Path | None) -> Companions:
    """Find what goes with `file`: as given, else what its run directory holds.

    Args:
        file: a distilled file.
        data: image folder with val/ class folders.
        baseline: a distilled file of random real images.

    Raises:
        UserError: if what was given, or what the run directory names, does not fit the file.
    """
    header = read_header(file)
    require_classes(file, header)
    val = _given_val(data, header) if data is not None else _run_val(file, header)
    if baseline is not None:
        _fits(baseline, header, file)
    else:
        baseline = _beside(file, header, _fits)
    return Companions(val, baseline)


def companions_of_pairs(file: Path, data: Path | None, baseline: Path | None) -> Companions:
    """As `companions_of`, of a file of representations, which serves images of any classes.

    Args:
        file: a distilled file of representations.
        data: image folder with train/ and val/ class folders.
        baseline: such a file of random real images.

    Raises:
        UserError: if what was given, or what the run directory names, does not fit the file.
    """
    header = read_header(file)
    own = _run_dataset(file, header, needed=data is None)
    train, val, source = None, None, None
    if own is not None:
        train, val = (with_statistics(s, header.mean, header.std) for s in (own.train, own.val))
        source = train
    if data is not None:
        train, val = _given_task(data, header)
    if baseline is not None:
        _pairs_fit(baseline, header, file)
    else:
        baseline = _beside(file, header, _pairs_fit)
    return Companions(val, baseline, train, source)


def _given_task(data: Path, header: Header) -> tuple[ImageSource, ImageSource]:
    train, val = (
        load_split(data, split, header.image_size, header.mean, header.std)
        for split in ("train", "val")
    )
    if train.classes != val.classes:
        raise DataError(
            f"{data}: train/ holds {len(train.classes)} classes and val/ {len(val.classes)}, and "
            "not the same; give both the same class folders"
        )
    return train, val


def _given_val(data: Path, header: Header) -> ImageSource:
    val = load_split(data, "val", header.image_size, header.mean, header.std)
    _same_classes(val.classes, header, str(data))
    return val


def _run_val(file: Path, header: Header) -> ImageSource | None:
    """The validation images of the run that made `file`, if it lies in one and they are there."""
    own = _run_dataset(file, header, needed=True)
    if own is None:
        return None
    _same_classes(own.val.classes, header, f"dataset {own.name}")
    return with_statistics(own.val, header.mean, header.std)


def _run_dataset(file: Path, header: Header, needed: bool) -> Dataset | None:
    """The images of the run that made `file`, if it lies in one and they are there.

    Where they are `needed`, it is said if they cannot be read.
    """
    cfg = read_run_config(file.parent)
    if cfg is None or cfg.dataset.image_size != header.image_size:
        return None
    try:
        return load_dataset(cfg.dataset)
    except DataError as error:
        if needed:
            print(f"the run's own images cannot be read ({error}); give --data DIR")
        return None


def _same_classes(classes: tuple[str, ...], header: Header, where: str) -> None:
    if tuple(classes) != tuple(header.class_names):
        differing = next(
            (
                f"class {number} is '{there}' there and '{here}' in the file"
                for number, (there, here) in enumerate(
                    zip(classes, header.class_names, strict=False)
                )
                if there != here
            ),
            "one list is the start of the other",
        )
        raise DataError(
            f"{where}: has {len(classes)} classes, the distilled file {len(header.class_names)}, "
            f"and {differing}; give the data the file was distilled from"
        )


def _beside(file: Path, header: Header, check: Callable[[Path, Header, Path], None]) -> Path | None:
    """The baseline that lies beside a file; None, said, if it is there but `check` refuses it."""
    beside = file.parent / "random_real.h5"
    if not beside.is_file() or beside == file:
        return None
    try:
        check(beside, header, file)
    except FormatError as error:
        print(f"left out: {error}")
        return None
    return beside


def _fits(baseline: Path, header: Header, file: Path) -> None:
    other = read_header(baseline)
    if other.class_names != header.class_names or other.image_size != header.image_size:
        raise FormatError(
            f"{baseline}: is of other classes or another image size than {file}; give a baseline "
            "of the same dataset"
        )


def _pairs_fit(baseline: Path, header: Header, file: Path) -> None:
    other = read_header(baseline)
    if not other.represented or _space(other) != _space(header):
        raise FormatError(
            f"{baseline}: holds no representations of the same length, or images of another size "
            f"or normalisation than {file}; give a baseline of the same run"
        )
    ours, theirs = ((about.teacher or {}).get("weights") for about in (header, other))
    if ours != theirs and None not in (ours, theirs):
        raise FormatError(
            f"{baseline}: holds representations of another network than {file}; give a baseline of "
            "the same run"
        )


def _space(header: Header) -> tuple[object, ...]:
    """What images and targets of two files must have in common, to be learnt by one network."""
    return header.image_size, header.target_dim, header.mean, header.std
