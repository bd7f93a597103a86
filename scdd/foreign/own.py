"""Weights files of scdd itself, whose metadata says everything."""

from pathlib import Path

from scdd.checkpoint import fill
from scdd.config.stem import Stem
from scdd.errors import CheckpointError
from scdd.foreign.heads import accepted
from scdd.foreign.loaded import Loaded, Report
from scdd.foreign.read import Contents
from scdd.models import create_model, has_choice_of_stem
from scdd.models.stems import stem_of


def load_own(
    path: Path,
    contents: Contents,
    arch: str,
    image_size: int,
    stem: Stem | None,
    classes: int | None,
) -> Loaded:
    """Load a backbone or teacher with the geometry that it was trained with.

    Raises:
        CheckpointError: if it is of another architecture, or its geometry, or a stem that is asked
            for, does not go with the image size.
    """
    about, weights = dict(contents.about or {}), dict(contents.states[""])
    try:
        named, changes, size = about["arch"], about["stem"], int(about["image_size"])
        recorded = Stem(**about["stem_spec"]) if about.get("stem_spec") else None
        mean, std = (tuple(map(float, about.get(key) or ())) for key in ("mean", "std"))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: does not say which network it is for; give the backbone.safetensors or "
            "teacher.safetensors of a run"
        ) from error
    if named != arch:
        raise CheckpointError(f"{path}: holds {named!r}; set squeeze.arch to that")
    model = create_model(arch, 0, image_size, stem or recorded)
    if model.stem != changes and stem is None and has_choice_of_stem(arch):
        # The same stem as at the size it was trained at, which this size would not get by itself.
        trained = create_model(arch, 0, size, recorded)
        model = create_model(arch, 0, image_size, stem_of(trained))
    if model.stem != changes:
        raise CheckpointError(
            f"{path}: its geometry is {changes!r}, at {size} px, not {model.stem!r} as here at "
            f"{image_size} px; set dataset.image_size: {size}"
            + ("" if stem is None else " and leave the stem out")
        )
    name = str(model.head)
    linear = [weights.pop(f"{name}.{kind}", None) for kind in ("weight", "bias")]
    fill(model, weights, path)
    head = (linear[0], linear[1]) if linear[0] is not None and linear[1] is not None else None
    taken, said = accepted(name, head, classes)
    report = Report("scdd", len(weights), str(model.stem), said)
    objective = str(about.get("objective", "unknown"))
    return Loaded(model, taken, report, objective, about.get("epoch"), mean or None, std or None)
