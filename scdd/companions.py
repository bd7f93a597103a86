"""What belongs to a distilled file: real validation images, random real images, the newest run.

A file in a run directory has them beside it; any other file is trained on all the same, and what is
missing is said. A path that is written inside a file is never opened.
"""

from dataclasses import dataclass
from pathlib import Path

from scdd.config.dataset import DatasetConfig
from scdd.config.load import read_run_config
from scdd.datasets import ImageSource, load_dataset, load_split
from scdd.datasets.pixel_statistics import with_statistics
from scdd.distilled import Header, read_header, require_classes
from scdd.errors import DataError, FormatError, UserError


@dataclass(frozen=True)
class Companions:
    """Real images to score on, and a baseline file under the same protocol; None where unknown."""

    val: ImageSource | None
    baseline: Path | None


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
    if baseline is None:
        beside = file.parent / "random_real.h5"
        if beside.is_file() and beside != file:
            baseline = _fitting(beside, header, file)
    else:
        _fits(baseline, header, file)
    return Companions(val, baseline)


def _given_val(data: Path, header: Header) -> ImageSource:
    val = load_split(data, "val", header.image_size, header.mean, header.std)
    _same_classes(val.classes, header, str(data))
    return val


def _run_val(file: Path, header: Header) -> ImageSource | None:
    """The validation images of the run that made `file`, if it lies in one and they are there."""
    cfg = read_run_config(file.parent)
    if cfg is None or cfg.dataset.image_size != header.image_size:
        return None
    dataset: DatasetConfig = cfg.dataset
    try:
        val = load_dataset(dataset).val
    except DataError as error:
        print(f"the run's own validation images cannot be read ({error}); give --data DIR")
        return None
    _same_classes(val.classes, header, f"dataset {dataset.name}")
    return with_statistics(val, header.mean, header.std)


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


def _fitting(beside: Path, header: Header, file: Path) -> Path | None:
    """The file that happens to lie beside, or None, said, if it is no baseline for this one."""
    try:
        _fits(beside, header, file)
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
