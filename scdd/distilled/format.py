"""Format version 1 of the distilled file: its names, its header and its digest."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scdd.config.section import Triple

FORMAT = "scdd"
FORMAT_VERSION = 1
KINDS = ("dense", "factored")
TARGET_KINDS = ("logits", "none", "representation")
PIXEL_SPACES = ("unit", "normalized")
LARGEST_IMAGE = 2**15 - 1
"""Pixel positions in view records are int16."""

IMAGES, LABELS, VIEWS, SOFT_LABELS = "images", "labels", "views", "soft_labels"

TEXTS = ("kind", "target_kind", "method", "recipe", "dataset", "created")
NUMBERS = ("target_dim", "image_size", "seed")
STRUCTURES = ("class_names", "mean", "std", "ipc", "budget_n", "config", "versions", "teacher")
"""Root attributes by type: text, integer, JSON text (what has parts, or may be null)."""
MORE_TEXTS, MORE_NUMBERS = ("pixel_space",), ("image_count",)
"""The same where targets are representations, and only there."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a distilled file says of itself; `config`, `versions` and `teacher` are for people.

    Raises:
        ValueError: if the fields contradict each other or cannot be stored.
    """

    target_kind: str
    """logits: views and soft labels are stored; none: images and labels alone; representation:
    vectors of a self-supervised network for turned views, and no classes."""
    method: str
    recipe: str
    dataset: str
    class_names: tuple[str, ...]
    mean: Triple
    std: Triple
    image_size: int
    """Side of the square images, in pixels."""
    ipc: int | None
    """Images per class, in rank-major order; None where classes are unequal or absent."""
    budget_n: int | None = None
    """Number of images where `ipc` is None; with representations the storage budget, as a number
    of plain images with a target each."""
    seed: int
    kind: str = "dense"
    """dense: every image is stored as pixels; factored: as coefficients of a basis."""
    target_dim: int = 0
    """Length of a soft label or representation; 0 without."""
    pixel_space: str = "unit"
    """unit: pixels are uint8; normalized: floats, from which `mean` is taken and by which `std`
    divided already. With representations alone."""
    image_count: int = 0
    """Number of images with representations; 0 without."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration; shown, never acted on."""
    versions: dict[str, str] = field(default_factory=dict)
    teacher: dict[str, Any] | None = None
    """arch, stem, objective, epoch, val_top1, weights digest, bn mode; and `labellers`, a list of
    the first six of each network, where labels are not those of this one alone."""
    created: str = ""
    """ISO 8601; the writer fills it in when empty. The only field that the digest leaves out."""
    digest: str = ""
    """Set by the reader; the writer computes it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        for name in ("config", "versions", "teacher"):
            # Tuples become lists now rather than in the file, so that what is read equals this.
            plain = json.loads(json.dumps(getattr(self, name), allow_nan=False))
            object.__setattr__(self, name, plain)
        fault = _header_fault(self)
        if fault is not None:
            raise ValueError(fault)

    @property
    def represented(self) -> bool:
        """Whether targets are representations, and there are no classes."""
        return self.target_kind == "representation"

    @property
    def count(self) -> int:
        """Number of images N."""
        if self.image_count:
            return self.image_count
        if self.ipc is not None:
            return self.ipc * len(self.class_names)
        assert self.budget_n is not None
        return self.budget_n


def attribute_names(
    target_kind: str,
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Root attributes of a file, but for its digest: texts, integers, JSON texts."""
    if target_kind == "representation":
        return (*TEXTS, *MORE_TEXTS), (*NUMBERS, *MORE_NUMBERS), STRUCTURES
    return TEXTS, NUMBERS, STRUCTURES


def header_digest(header: Header, groups: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
    """SHA-256 over the header, the attributes of the groups and the hash of each dataset.

    The same content has the same digest: `created` and the layout of the file are left out.
    """
    names = {name for kind in attribute_names(header.target_kind) for name in kind} - {"created"}
    content = {
        "format": [FORMAT, FORMAT_VERSION],
        "header": {name: getattr(header, name) for name in names},
        "groups": groups,
        "datasets": sorted(hashes.items()),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def content_hash(dtype: np.dtype, shape: Sequence[int]) -> "hashlib._Hash":
    """Start the SHA-256 of a dataset; its bytes in C order, little-endian, are to follow."""
    return hashlib.sha256(f"{dtype.str} {list(shape)}\n".encode("ascii"))


def label_fault(labels: np.ndarray, header: Header) -> str | None:
    """Say what is wrong with labels [N] of the given file, or None."""
    classes = len(header.class_names)
    if labels.min() < -1 or labels.max() >= classes:
        return f"labels lie in {labels.min()} .. {labels.max()}, not in -1 .. {classes - 1}"
    if header.ipc is not None and (labels != np.arange(len(labels)) % classes).any():
        return "labels are not in rank-major order 0, 1, .., 0, 1, .. although ipc is given"
    return None


def _header_fault(header: Header) -> str | None:
    for name in TEXTS:
        text = getattr(header, name)
        if not isinstance(text, str) or "\0" in text or not _encodes(text):
            return f"{name} is not a text that UTF-8 can hold"
    if header.kind not in KINDS:
        return f"kind '{header.kind}' is not one of {', '.join(KINDS)}"
    if header.target_kind not in TARGET_KINDS:
        return f"target_kind '{header.target_kind}' is not one of {', '.join(TARGET_KINDS)}"
    names = header.class_names
    represented = header.represented
    if represented == bool(names) or not all(isinstance(name, str) for name in names):
        return f"class_names is not {'empty' if represented else 'a list of one text per class'}"
    for name, values in (("mean", header.mean), ("std", header.std)):
        if len(values) != 3 or not all(_is_finite(value) for value in values):
            return f"{name} is not three finite numbers"
    if min(header.std) <= 0:
        return "std is not positive"
    if not _is_count(header.image_size) or header.image_size > LARGEST_IMAGE:
        return f"image_size {header.image_size} is not in 1 .. {LARGEST_IMAGE}"
    sizes = (header.ipc, header.budget_n)
    if sizes.count(None) != 1 or not all(size is None or _is_count(size) for size in sizes):
        return "exactly one of ipc and budget_n must be a positive number"
    if type(header.seed) is not int or not 0 <= header.seed < 2**63:
        return f"seed {header.seed} is not in 0 .. 2**63 - 1"
    if represented:
        fault = _representation_fault(header)
        if fault is not None:
            return fault
    elif (header.kind, header.pixel_space, header.image_count) != ("dense", "unit", 0):
        return "kind, pixel_space or image_count are of representations, which target_kind is not"
    wanted = len(names) if header.target_kind == "logits" else 0
    if not represented and header.target_dim != wanted:
        return f"target_dim is {header.target_dim}, but target_kind and class_names say {wanted}"
    for name in ("config", "versions", "teacher"):
        value = getattr(header, name)
        if not isinstance(value, dict) and not (name == "teacher" and value is None):
            return f"{name} is not a mapping"
    return None


def _representation_fault(header: Header) -> str | None:
    if header.budget_n is None:
        return "budget_n is not given, which representations need"
    for name in ("target_dim", "image_count"):
        if not _is_count(getattr(header, name)):
            return f"{name} is {getattr(header, name)}, not a positive number"
    if header.pixel_space not in PIXEL_SPACES:
        return f"pixel_space '{header.pixel_space}' is not one of {', '.join(PIXEL_SPACES)}"
    if header.kind == "factored" and header.pixel_space != "normalized":
        return "pixel_space of a factored set is not normalized"
    return None


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < 2**63
