"""A backbone of ours out of a file of any known layout, complete or not at all."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from scdd.checkpoint import fill
from scdd.config.checkpoint import CheckpointConfig
from scdd.config.known_checkpoints import KnownCheckpoint, find
from scdd.config.section import Triple
from scdd.config.stem import STOCK, Stem
from scdd.errors import CheckpointError, ConfigError
from scdd.foreign.heads import (
    BESIDE_A_BACKBONE,
    BESIDE_A_FLAT_NET,
    accepted,
    head_among,
    head_of_file,
)
from scdd.foreign.layouts import ignored, joined
from scdd.foreign.loaded import Loaded, Report
from scdd.foreign.matching import Match, find_network, is_counter
from scdd.foreign.own import load_own
from scdd.foreign.read import Contents, State, read
from scdd.models import create_model, has_choice_of_stem


def load_backbone(
    path: Path,
    arch: str,
    image_size: int,
    stem: Stem | None = None,
    head: Path | None = None,
    classes: int | None = None,
) -> Loaded:
    """Load the backbone of `path` as `arch`, and its linear classifier if there is one.

    Args:
        path: weights of scdd, or of another project (`layouts.LAYOUTS`).
        arch: name of the architecture that they are for.
        image_size: pixels.
        stem: geometry of the stem; needed for a foreign ResNet whose first convolution is 3x3. A
            7x7 one is the stock stem, whatever the image size.
        head: a second file, with the linear classifier.
        classes: how many the classifier must tell apart; one for another number is an error in
            `head` and passed over in `path`.

    Raises:
        CheckpointError: if a file cannot be read safely, a backbone weight is missing or has
            another shape, or the geometry is not known.
        ConfigError: if `arch` is unknown, or has no choice of stem and one is given.
    """
    contents = read(path)
    if contents.about is not None:
        loaded = load_own(path, contents, arch, image_size, stem, classes)
    else:
        loaded = _load_foreign(path, contents, arch, image_size, stem, classes)
    if head is None:
        return loaded
    name, found = head_of_file(head, loaded.backbone, classes)
    report = replace(loaded.report, head=f"{name} {list(found[0].shape)} of {head}")
    return replace(loaded, head=found, report=report)


def squeezed_from(
    cfg: CheckpointConfig,
    arch: str,
    image_size: int,
    mean: Triple | None,
    std: Triple | None,
    stem: Stem | None = None,
    classes: int | None = None,
) -> Loaded:
    """Load what a configuration asks for in place of a squeeze.

    `mean` and `std` are those set in `dataset`, None where they would be measured.

    Raises:
        ConfigError: if mean and std are not set, or not those that the weights were trained with,
            or the known checkpoint is of another architecture.
        CheckpointError: as `load_backbone` does.
    """
    known = find(cfg.known) if cfg.known else None
    if known is not None and known.arch != arch:
        raise ConfigError(
            f"squeeze.checkpoint.known: {known.name} is a {known.arch}, but squeeze.arch is "
            f"{arch}; set squeeze.arch: {known.arch}"
        )
    head = Path(cfg.head).expanduser() if cfg.head else None
    loaded = load_backbone(Path(cfg.path).expanduser(), arch, image_size, stem, head, classes)
    if known is not None:
        loaded = _with_facts(loaded, known)
    if mean is None or std is None:
        if loaded.mean is not None and loaded.std is not None:
            whose = f" for {known.name}" if known else ""
            what = f"the values of its training ({_yaml(loaded.mean, loaded.std)}{whose})"
        else:
            what = "those of its training, which its keys do not carry"
        raise ConfigError(
            f"{cfg.path}: wants the pixel statistics that it was trained with; set dataset.mean "
            f"and dataset.std to {what}"
        )
    if loaded.mean is not None and loaded.std is not None:
        pairs = zip((*mean, *std), (*loaded.mean, *loaded.std), strict=True)
        if any(abs(ours - theirs) > 5e-4 for ours, theirs in pairs):
            raise ConfigError(
                f"{cfg.path}: was trained with {_yaml(loaded.mean, loaded.std)}, but dataset has "
                f"{_yaml(mean, std)}; set dataset.mean and dataset.std to those of the training"
            )
    return loaded


def _load_foreign(
    path: Path,
    contents: Contents,
    arch: str,
    image_size: int,
    stem: Stem | None,
    classes: int | None,
) -> Loaded:
    match = find_network(path, contents.states, arch, image_size)
    if has_choice_of_stem(arch):
        model = create_model(arch, 0, image_size, _stem(path, match, stem))
    else:
        model = create_model(arch, 0, image_size, stem)  # which refuses a stem
        if model.stem != "stock":
            raise CheckpointError(
                f"{path}: holds weights of a stock {arch}, but at {image_size} px it has another "
                f"geometry here ({model.stem}); use a ResNet, or larger images"
            )
    weights, missing = _weights(path, match, model)
    fill(model, weights, path)
    flat = not match.candidate.prefix
    names = (str(model.head), *BESIDE_A_FLAT_NET) if flat else BESIDE_A_BACKBONE
    name, head = head_among(match.state, names, model)
    head, said = accepted(name, head, classes)
    used = {match.candidate.key(key) for key in weights}
    used |= {f"{name}.weight", f"{name}.bias"} if head is not None else set()
    unused = ignored(contents.states, match.candidate, used)
    report = Report(
        match.described, len(match.wanted), str(model.stem), said, unused, tuple(missing)
    )
    return Loaded(model, head, report, match.layout.objective, None)


def _weights(path: Path, match: Match, model: nn.Module) -> tuple[State, list[str]]:
    """Everything that `model` wants, by its own names, and which counters had to be made up."""
    weights, missing = {}, []
    for key, own in model.state_dict().items():
        name = match.candidate.key(key)
        if name in match.state:
            weights[key] = joined(key, match.state[name], own.shape)
        else:
            assert is_counter(key)
            weights[key] = torch.zeros_like(own)
            missing.append(key)
        fault = _fault(key, weights[key], own)
        if fault:
            raise CheckpointError(f"{path}: weight '{name}' has {fault}, so take another file")
    return weights, missing


def _fault(key: str, weight: Tensor, own: Tensor) -> str | None:
    """What is wrong with the values of a weight, in words."""
    if own.is_floating_point() and not weight.is_floating_point():
        return f"{str(weight.dtype).removeprefix('torch.')} values, which are no weights of a net"
    if not weight.isfinite().all():
        return "values that are not finite; the training that wrote it had diverged"
    if key.endswith("running_var") and (weight < 0).any():
        return "negative variances, which no training leaves"
    return None


def _stem(path: Path, match: Match, stem: Stem | None) -> Stem:
    """The stem to build: the one asked for, checked against what the file does tell."""
    kernel = match.state[match.candidate.key("conv1.weight")].shape[-1]
    without = match.candidate.naming.without
    if stem is None:
        if kernel == 7 and not without:
            return STOCK
        lacking = "".join(f", no {part}" for part in without)
        raise CheckpointError(
            f"{path}: found {match.described}, whose first convolution is {kernel}x{kernel}"
            f"{lacking}, and weights do not tell its stride (1 or 2), its padding (1, or 2 as in "
            "solo-learn) and whether a max-pool follows; say so, as in "
            f"squeeze.stem: {{kernel: {kernel}, stride: {1 if kernel == 3 else 2}, "
            f"padding: {kernel // 2}, max_pool: false}}"
        )
    if stem.kernel != kernel:
        raise CheckpointError(
            f"{path}: its first convolution is {kernel}x{kernel}, but the stem asks for "
            f"{stem.kernel}x{stem.kernel}; set squeeze.stem.kernel: {kernel}"
        )
    if stem.max_pool and "max-pool" in without:
        raise CheckpointError(
            f"{path}: found {match.described}, where no max-pool has a place; "
            "set squeeze.stem.max_pool: false"
        )
    return stem.model_copy(update={"relu": False}) if "ReLU" in without else stem


def _yaml(mean: Iterable[float], std: Iterable[float]) -> str:
    means, stds = (", ".join(f"{value:g}" for value in values) for values in (mean, std))
    return f"mean: [{means}], std: [{stds}]"


def _with_facts(loaded: Loaded, known: KnownCheckpoint) -> Loaded:
    return replace(
        loaded, objective=known.objective, epoch=known.epochs, mean=known.mean, std=known.std
    )
