"""What decides what a step makes: its part of the configuration, and digests of what it reads."""

from pathlib import Path
from typing import Any

from scdd.config.methods import IMAGES_OF, OWN_SECTIONS
from scdd.config.run import RunConfig
from scdd.files import sha256_of
from scdd.method_steps import NETWORKS, Step
from scdd.steps import Context


def settings_of(cfg: RunConfig, step: Step) -> dict[str, Any]:
    """The part of the configuration that decides what a step makes."""
    values = cfg.model_dump(mode="json")
    pretrain = values.get("pretrain") or {}
    for section in (values[step.images], *pretrain.get("transfer", ())):
        _forget_place(section)
    if not pretrain.get("transfer"):
        pretrain.pop("transfer", None)  # As before there was a choice, so that older runs go on.
    # Digests tell checkpoints apart; they may lie anywhere.
    for section in (values["squeeze"], *values.get("squeeze_labellers", ())):
        for name in ("path", "head"):
            (section["checkpoint"] or {}).pop(name, None)
    # What other methods may take up as a copy does not depend on what is made with it.
    if step.name in {network.name for network in NETWORKS}:
        values["method"] = "scdd"
    elif step.name == OWN_SECTIONS[cfg.method][0]:
        values["method"] = IMAGES_OF.get(cfg.method, cfg.method)
    return {name: values[name] for name in ("method", "seed", step.images, *step.sections)}


def inputs_of(context: Context, step: Step) -> dict[str, str]:
    """Digests of what a step reads."""
    inputs = {name: context.run.digest_of(name) for name in step.inputs}
    if step.reads_images:
        inputs[step.images] = getattr(context, step.images).digest
    if "pretrain" in step.sections:
        digests = (task.digest for task in context.transfer)
        inputs |= dict(zip(context.cfg.transfer, digests, strict=True))
    for name, path in _checkpoints(context.cfg, step).items():
        if path.is_file():
            inputs[name] = sha256_of(path)
    return inputs


def gone_inputs(cfg: RunConfig, step: Step) -> str:
    """What a step has read and is no longer there, in words: finished steps need none of it."""
    read = [getattr(cfg, step.images)] if step.reads_images else []
    read += cfg.transfer.values() if "pretrain" in step.sections else ()
    roots = [Path(section.root).expanduser() for section in read if section.root is not None]
    if not all(root.exists() for root in roots):
        return "the real images"
    missing = not all(path.exists() for path in _checkpoints(cfg, step).values())
    return "the weights of the checkpoint" if missing else ""


def _forget_place(images: dict[str, Any]) -> None:
    """Leave of a section of images what decides a result; digests tell the images apart."""
    del images["root"], images["workers"]
    if images["storage"] == "resident":
        del images["storage"]  # As before there was a choice, so that older runs go on.


def _checkpoints(cfg: RunConfig, step: Step) -> dict[str, Path]:
    """Files of other trainings that a step takes up, by the key that names them."""
    squeezes = {"squeeze": (cfg.squeeze,), "squeeze_labellers": cfg.squeeze_labellers}
    return {
        f"{step.name}.checkpoint.{name} ({section.arch})": Path(path).expanduser()
        for section in squeezes.get(step.name, ())
        if section.checkpoint is not None
        for name, path in (("path", section.checkpoint.path), ("head", section.checkpoint.head))
        if path is not None
    }
