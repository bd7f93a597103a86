"""`scdd inspect`: what a distilled file holds, in lines for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scdd.distilled import DenseSet, DistilledFile, FactoredSet, Pairs, verify
from scdd.distilled.bill import describe_bill
from scdd.distilled.computed_labels import TEACHER, check_teacher
from scdd.distilled.factored import gram_error
from scdd.distilled.labelling import load_labellers
from scdd.distilled.reproduction import deviations
from scdd.errors import FormatError
from scdd.files import sha256_of
from scdd.tables import counted, size


def describe(path: Path, thorough: bool, teachers: Sequence[Path] = ()) -> str:
    """Return a description of a distilled file.

    Args:
        path: the file.
        thorough: also read everything and check digests, ranges and finiteness.
        teachers: weights of the networks that are to have labelled it; a sample is labelled again.

    Raises:
        FormatError: if it is not a readable distilled file, `thorough` finds a fault, or the labels
            are not those of `teachers`.
        CheckpointError: if one of these cannot be read.
    """
    with DistilledFile(path) as file:
        header = file.header
        content = _pairs(file) if header.represented else _classified(file)
    lines = [
        f"{path} ({size(path.stat().st_size)})",
        f"  method       {header.method}, recipe {header.recipe}, seed {header.seed}",
        *content,
        f"  teacher      {_teacher(header.teacher)}",
        *(f"  labelled by  {_network(network)}" for network in _labellers(header.teacher)),
        f"  made by      scdd {header.versions.get('scdd', '?')}, "
        f"torch {header.versions.get('torch', '?')}, {header.created}",
        f"  digest       {header.digest}",
    ]
    if thorough:
        faults = verify(path)
        if faults:
            raise FormatError(f"{path}: {'; '.join(faults)}; make or download it again")
        lines.append("  verified     every digest, shape and range is right")
        lines += _teacher_beside(path) if not teachers else []
    if teachers:
        lines += _reproduced(path, teachers)
    return "\n".join(map(printable, lines))


def printable(text: str) -> str:
    """Replace what a terminal would obey instead of show; a file's texts may come from anyone."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _reproduced(path: Path, teachers: Sequence[Path]) -> list[str]:
    """Lines on how near the labels of `teachers` are to those of the file.

    Raises:
        FormatError: if they are too far from each other, or cannot be compared.
    """
    with DistilledFile(path) as file:
        if file.codec is None:
            raise FormatError(f"{path}: holds no soft labels; leave --teacher out")
        if not file.codec.layout:
            for weights in teachers:
                check_teacher(path, weights, file.header)
            return ["  reproduced   these are the weights that compute the labels"]
        odd = _others_than_recorded(file, teachers)
        grouped = file.views is not None and "group" in file.views.parameters
        networks = load_labellers(path, teachers, file.header, grouped)
        found = list(deviations(file, networks))
    far = [one for one in found if not one.share <= one.allowed]  # As is what is no number.
    if far:
        one = max(far, key=lambda one: one.share)
        raise FormatError(
            f"{path}: {odd}the label of image {one.image} in view {one.view} is {one.share:.1%} of "
            f"the logit range off what {' and '.join(map(str, teachers))} says, more than the "
            f"{one.allowed:.1%} that codec and device explain; give the weights that labelled this "
            "file, or make or download it again"
        )
    one = max(found, key=lambda one: one.share)
    return [
        f"  reproduced   {odd}{len(found)} labels, the farthest {one.share:.3%} of the logit range "
        f"off, {one.allowed:.1%} allowed"
    ]


def _teacher_beside(path: Path) -> list[str]:
    """Lines on the weights that are to compute the labels of the file, where none are stored.

    Raises:
        FormatError: if others lie beside the file.
    """
    with DistilledFile(path) as file:
        if file.codec is None or file.codec.layout:
            return []
        beside = file.path.with_name(TEACHER)
        if not beside.is_file():
            return [f"  no teacher   {TEACHER}, which computes the labels, does not lie beside"]
        check_teacher(path, beside, file.header)
    return [f"  teacher      {beside} is what computes the labels"]


def _others_than_recorded(file: DistilledFile, teachers: Sequence[Path]) -> str:
    """What speaks against `teachers` as those who labelled a file, as the start of a sentence."""
    teacher = file.header.teacher
    recorded = [network.get("weights") for network in _labellers(teacher) or [teacher or {}]]
    if len(recorded) != len(teachers):
        return f"{len(recorded)} networks labelled the file, not {len(teachers)}; "
    for weights in teachers:
        if sha256_of(weights) not in recorded:
            return f"{weights} is not what the file records as its labeller (other sha256); "
    return ""


def _labellers(teacher: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The networks whose mean the labels are, where they are not those of the teacher alone."""
    listed = (teacher or {}).get("labellers")
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _teacher(teacher: dict[str, Any] | None) -> str:
    if not teacher:
        return "none recorded"
    return f"{_network(teacher)}, BatchNorm {teacher.get('bn', 'unknown')}"


def _network(about: dict[str, Any]) -> str:
    top1 = about.get("val_top1")
    score = f"{top1:.1f} %" if isinstance(top1, int | float) else "unknown"
    epoch = about.get("epoch")
    after = f", {epoch} epochs" if isinstance(epoch, int) else ""
    return (
        f"{about.get('arch', 'unknown')}, {about.get('objective', 'unknown objective')}, "
        f"validation top-1 {score}{after}"
    )


def _classified(file: DistilledFile) -> list[str]:
    """Lines on images with class labels."""
    header = file.header
    per_class = f"ipc {header.ipc}" if header.ipc is not None else f"budget {header.budget_n}"
    return [
        f"  dataset      {header.dataset}, {len(header.class_names)} classes: "
        + _some(header.class_names),
        f"  images       {len(file.images())} of {header.image_size} px, {per_class}, "
        f"{header.kind}",
        f"  soft labels  {_soft_labels(file)}",
    ]


def _pairs(file: DistilledFile) -> list[str]:
    """Lines on images with representations."""
    header, parts, sizes = file.header, file.pairs(), file.bill
    assert header.budget_n is not None
    degrees = ", ".join(str(90 * turn) for turn in parts.turns)
    lines = [
        f"  dataset      {header.dataset}, without classes",
        f"  images       {len(parts)} of {header.image_size} px, {header.pixel_space} pixels, "
        f"{header.kind}",
        f"  views        {counted(parts.num_views, 'view')} an image, turned by {degrees} degrees",
        f"  targets      representations of length {header.target_dim}, {_turned(parts)}",
    ]
    if isinstance(parts, FactoredSet):
        errors = gram_error(parts.image_basis), gram_error(parts.target_basis)
        lines.append(
            f"  bases        {sizes.image_bases} of {sizes.basis_size} px for images, gram error "
            f"{errors[0]:.1e}; {sizes.target_bases} for targets, gram error {errors[1]:.1e}"
        )
    return [*lines, f"  bill         {describe_bill(sizes, header.budget_n)}"]


def _turned(parts: Pairs) -> str:
    """Where targets of turned views come from."""
    if parts.num_views == 1 or isinstance(parts, DenseSet):
        return "stored"
    if parts.approximation is None:
        return "those of turned views stored as coefficients"
    hidden = parts.approximation.b0.shape[1]
    beside = "" if parts.view_coefficients is None else ", stored beside to measure what that costs"
    return f"those of turned views predicted, {hidden} hidden units{beside}"


def _soft_labels(file: DistilledFile) -> str:
    if file.views is None:
        return "none"
    on = f"on {file.num_views} views an image ({', '.join(file.views.ops) or 'whole images'})"
    if file.codec is None:
        return f"none, class labels {on}"
    kept = f"codec {file.codec.name}, {size(file.label_bytes)} with the views"
    if not file.codec.layout:
        weights = file.path.with_name(TEACHER)
        there = size(weights.stat().st_size) if weights.is_file() else "not there"
        kept += f", computed by {weights.name} beside the file ({there})"
    return f"{file.header.target_kind} {on}, {kept}"


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:6])
    return shown + (", ..." if len(names) > 6 else "")
