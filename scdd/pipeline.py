"""Methods as lists of steps; `distill` runs those that are not done yet."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from scdd.bn_statistics import check_plain, count_batchnorm
from scdd.config.methods import IMAGES_OF, OWN_SECTIONS
from scdd.config.recover import RecoverConfig
from scdd.config.run import RunConfig
from scdd.config.stem import Stem
from scdd.deadline import Deadline
from scdd.distributed import joined
from scdd.errors import ConfigError, OutOfTime, RunError
from scdd.files import replacing, sha256_of, write_json
from scdd.models import create_model
from scdd.progress import duration, say
from scdd.report import print_report, run_report
from scdd.report_pairs import run_report_pairs
from scdd.run import PeakMemory, RunDirectory, environment, file_digests
from scdd.stages.condense import check_embedding
from scdd.steps import (
    Context,
    check_later_steps,
    run_baseline,
    run_baseline_pairs,
    run_condense,
    run_condense_pairs,
    run_decode,
    run_posttrain,
    run_pretrain,
    run_probe,
    run_probe_labellers,
    run_recover,
    run_relabel,
    run_represent,
    run_select,
    run_squeeze,
    run_squeeze_labellers,
    run_squeeze_scorer,
)


@dataclass(frozen=True)
class Step:
    """One folder of the run directory.

    `sections` are the parts of the configuration that the step depends on, `inputs` the steps
    whose files it reads, `shown` those it may make that also stand at the top of the run directory;
    `reads_images` tells whether it sees real images and `images` which section names them, where it
    is given (else `dataset`); `sharded` whether ranks share its work.
    """

    name: str
    run: Callable[[Context, str], tuple[str, ...]]
    sections: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    reads_images: bool = True
    images: str = "dataset"
    sharded: bool = False


NETWORKS = (
    Step("squeeze", run_squeeze, ("squeeze",), images="squeeze_dataset", sharded=True),
    Step("squeeze_labellers", run_squeeze_labellers, ("squeeze_labellers",), sharded=True),
    Step("probe", run_probe, ("probe",), ("squeeze",), ("teacher.safetensors",), sharded=True),
    Step("probe_labellers", run_probe_labellers, ("probe",), ("squeeze_labellers",), sharded=True),
)
TEACHERS = ("probe", "probe_labellers")

RECOVER = Step(
    "recover", run_recover, ("recover", "ipc"), TEACHERS, reads_images=False, sharded=True
)
REAL_START = (
    Step("recover_real", run_recover, ("recover_real", "ipc"), TEACHERS, sharded=True),
    Step(
        "relabel_real",
        run_relabel,
        ("relabel", "recipe"),
        (*TEACHERS, "recover_real"),
        ("real_start.h5",),
        reads_images=False,
        sharded=True,
    ),
)
BASELINE = Step(
    "baseline",
    run_baseline,
    ("relabel", "recipe", "ipc"),
    TEACHERS,
    ("random_real.h5",),
    sharded=True,
)


def _method(images: Step, *arms: Step, before: tuple[Step, ...] = ()) -> tuple[Step, ...]:
    """The steps of a method that makes its images by `images` and labels them by the teachers.

    `arms` are the steps of what its students are compared with; those that show a file label it.
    """
    relabel = Step(
        "relabel",
        run_relabel,
        ("relabel", "recipe"),
        (*TEACHERS, images.name),
        ("distilled.h5",),
        reads_images=False,
        sharded=True,
    )
    labelled = tuple(arm.name for arm in arms if arm.shown)
    posttrain = Step(
        "posttrain",
        run_posttrain,
        ("posttrain",),
        ("relabel", *labelled),
        ("results.json",),
        sharded=True,
    )
    report = Step(
        "report",
        run_report,
        (),
        ("probe", "posttrain"),
        ("report.md", "gallery.png", "recover_losses.png", "recover_real_losses.png"),
        reads_images=False,
    )
    # What needs no network comes first, so that it stays when those are made anew.
    made = (*NETWORKS, *before, images) if images.inputs else (images, *NETWORKS, *before)
    return (*made, relabel, *arms, posttrain, report)


def _selecting(*networks: str) -> Step:
    return Step("select", run_select, ("select", "ipc"), (*networks, "probe"), sharded=True)


SCDD = _method(RECOVER, *REAL_START, BASELINE)
RANDOM = _method(_selecting())
FEATURES = _method(_selecting("squeeze"), BASELINE)
SCORER = Step("squeeze_scorer", run_squeeze_scorer, ("squeeze", "squeeze_scorer"), sharded=True)
FORGETTING = _method(_selecting("squeeze", "squeeze_scorer"), BASELINE, before=(SCORER,))

DM = _method(Step("condense", run_condense, ("condense", "ipc")), BASELINE)

CONDENSE_PAIRS = Step(
    "condense_pairs", run_condense_pairs, ("condense_pairs",), ("squeeze",), ("distilled.h5",)
)


def _pairs(*made: Step, sections: tuple[str, ...]) -> tuple[Step, ...]:
    """The steps of a method that makes images with representations, the last of `made` the file.

    `sections` say how large it is, and so with how many real images it is compared.
    """
    pairs = made[-1].name
    baseline = Step(
        "baseline_pairs", run_baseline_pairs, sections, ("squeeze",), ("random_real.h5",)
    )
    pretrain = Step(
        "pretrain",
        run_pretrain,
        ("pretrain",),
        (pairs, "baseline_pairs"),
        ("results.json",),
        sharded=True,
    )
    report = Step(
        "report",
        run_report_pairs,
        (),
        (pairs, "pretrain"),
        ("report.md", "gallery.png"),
        reads_images=False,
    )
    return (*made, baseline, pretrain, report)


PAIRS = _pairs(NETWORKS[0], CONDENSE_PAIRS, sections=("condense_pairs",))
"""Of the second family: no image has a class."""

SCDD_PAIRS = _pairs(
    *NETWORKS,
    RECOVER,
    Step(
        "represent",
        run_represent,
        ("represent",),
        ("squeeze", "recover"),
        ("distilled.h5",),
        reads_images=False,
    ),
    sections=("represent", "ipc"),
)
LABELLED_PAIRS = _method(
    Step("decode", run_decode, (), ("probe", "condense_pairs"), reads_images=False),
    replace(BASELINE, sections=("relabel", "recipe", "condense_pairs")),
    before=(replace(CONDENSE_PAIRS, shown=()),),
)
"""Bridges: images of one family with the targets of the other."""

METHODS = {
    "scdd": SCDD,
    "sre2l": SCDD,
    "random": RANDOM,
    "herding": FEATURES,
    "k_center": FEATURES,
    "forgetting": FORGETTING,
    "dm": DM,
    "krr_st": PAIRS,
    "boost": PAIRS,
    "scdd_pairs": SCDD_PAIRS,
    "krr_st_labels": LABELLED_PAIRS,
    "boost_labels": LABELLED_PAIRS,
}

TORN = ".*.tmp"
"""What `replacing` was writing when its process was killed."""


def steps_of(cfg: RunConfig) -> tuple[Step, ...]:
    """The steps that a configuration asks for, in order."""
    left_out: tuple[str, ...] = ()
    if cfg.recover_real is None:
        left_out += ("recover_real", "relabel_real")
    if not cfg.squeeze_labellers:
        left_out += ("squeeze_labellers", "probe_labellers")
    if cfg.scorer is None:
        left_out += ("squeeze_scorer",)
    return tuple(
        replace(
            step,
            inputs=tuple(
                name
                for name in step.inputs
                if name not in left_out and _reads(cfg, step.name, name)
            ),
            images=step.images if getattr(cfg, step.images) is not None else "dataset",
        )
        for step in METHODS[cfg.method]
        if step.name not in left_out
    )


def _reads(cfg: RunConfig, step: str, earlier: str) -> bool:
    """Whether a step reads an input of its list: labellers only where it uses them."""
    return earlier != "probe_labellers" or list(cfg.teachers_of(step)) != ["squeeze"]


def plan(
    cfg: RunConfig, until: str | None = None, redo: str | None = None
) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """Return the steps to run and those to do again.

    Raises:
        ConfigError: if there is no such step, or a network cannot be used.
    """
    steps = steps_of(cfg)
    wanted = steps[: 1 + _position(steps, until, "--until")] if until else steps
    again = steps[_position(steps, redo, "--redo") :] if redo else ()
    _check_networks(cfg)
    return wanted, again


def distill(
    cfg: RunConfig,
    out: Path,
    device: torch.device | str = "cpu",
    until: str | None = None,
    redo: str | None = None,
    deadline: Deadline | None = None,
) -> Path:
    """Run the steps of `cfg` that are not done in `out`; return `out`.

    Raises:
        UserError: if the configuration, the data or the run directory cannot be used.
        RunError: if a step cannot go on; what is finished stays.
        OutOfTime: before the deadline, if there is one; the same call goes on from there.
    """
    deadline = deadline or Deadline(math.inf)
    steps = steps_of(cfg)
    wanted, again = plan(cfg, until, redo)
    run = RunDirectory(out)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    with joined() as world, run.locked() if world.leads else nullcontext():
        if world.size > 1 and deadline.left < math.inf:
            raise ConfigError(
                "--minutes: is for one process, as ranks would have to stop at the same step; "
                "leave it out, and end torchrun when the time is over: checkpoint_minutes are lost "
                "at most"
            )
        device = world.device(torch.device(device))
        context = Context(cfg, run, device, tuple(step.name for step in steps), world, deadline)
        if world.leads:
            for step in steps:
                if step not in again:
                    run.check_settings(step.name, settings_of(cfg, step))
            if again:
                if any(step.reads_images for step in again):
                    check_later_steps(cfg, context.dataset)  # Refused before anything is moved.
                _set_aside(run, again)
            _remove(run.path.glob(TORN))
            _remember(run, cfg, str(device), measures=_measures(run, wanted))
        try:
            for step in wanted:
                _run_step(context, step)
        except OutOfTime as error:
            done = [step.name for step in wanted if run.done(step.name) is not None]
            raise OutOfTime(
                f"{out}: {error}; done: {', '.join(done) or 'no step yet'}; the same command goes "
                "on from there"
            ) from error
        if wanted == steps and world.leads:
            print_report(run.path)
    return out


def _run_step(context: Context, step: Step) -> None:
    """Skip a finished step; otherwise run it and write its done marker last.

    Rank 0 decides and records; the others help where the step is sharded, and else wait.
    """
    run, world = context.run, context.world
    world.barrier()  # What the last step wrote is there for every rank.
    done = run.done(step.name)
    if world.leads and done is not None:
        run.check_outputs(step.name, done)
        shown = _shown(step, done["outputs"])
        run.show(step.name, tuple(name for name in shown if not (run.path / name).exists()))
        gone = _gone(context.cfg, step)
        if not gone:
            run.check_inputs(step.name, _inputs(context, step))
        note = f"; {gone} are gone, so it was not compared with them" if gone else ""
        say(f"{step.name}: done before ({duration(done['seconds'])}){note}")
    elif world.leads:
        context.deadline.begin(step.name)
        inputs = _inputs(context, step)
        run.check_inputs(step.name, inputs)
        say(f"{step.name}: running")
        run.begin(step.name, settings_of(context.cfg, step), inputs)
        _remove(run.folder(step.name).rglob(TORN))
    world.barrier()
    if done is not None or not (world.leads or step.sharded):
        return
    if context.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(context.device)
    memory, started = PeakMemory(), time.monotonic()
    try:
        names = step.run(context, step.name)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise RunError(
            f"{step.name}: out of memory on {context.device} ({error}); "
            f"{_in_less(context.cfg, step)}, then run the same command again"
        ) from error
    context.deadline.end()
    if not world.leads:
        return
    seconds = time.monotonic() - started
    peak = {"host": memory.read()}
    if context.device.type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated(context.device)
    _remove(run.folder(step.name).glob("*.checkpoint"))
    digests = file_digests(run.folder(step.name), names)
    run.finish(step.name, digests, _shown(step, digests), seconds, peak)
    say(f"{step.name}: {duration(seconds)}")


def _in_less(cfg: RunConfig, step: Step) -> str:
    """What to do where memory was not enough."""
    section = getattr(cfg, step.name, None)
    return f"lower {step.name}.batch" if hasattr(section, "batch") else "free some"


def _shown(step: Step, outputs: dict[str, str]) -> tuple[str, ...]:
    return tuple(name for name in step.shown if name in outputs)


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


def _forget_place(images: dict[str, Any]) -> None:
    """Leave of a section of images what decides a result; digests tell the images apart."""
    del images["root"], images["workers"]
    if images["storage"] == "resident":
        del images["storage"]  # As before there was a choice, so that older runs go on.


def _inputs(context: Context, step: Step) -> dict[str, str]:
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


def _gone(cfg: RunConfig, step: Step) -> str:
    """What a step has read and is no longer there, in words: finished steps need none of it."""
    read = [getattr(cfg, step.images)] if step.reads_images else []
    read += cfg.transfer.values() if "pretrain" in step.sections else ()
    roots = [Path(section.root).expanduser() for section in read if section.root is not None]
    if not all(root.exists() for root in roots):
        return "the real images"
    missing = not all(path.exists() for path in _checkpoints(cfg, step).values())
    return "the weights of the checkpoint" if missing else ""


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


def _remove(paths: Iterable[Path]) -> None:
    """Remove files that we made and nobody needs or, under the lock, writes any more."""
    for path in list(paths):
        path.unlink()


def _check_networks(cfg: RunConfig) -> None:
    """Refuse at once a network that a later step would refuse hours later."""
    size = cfg.dataset.image_size
    if cfg.condense_pairs is not None:
        _network("condense_pairs.pool", cfg.condense_pairs.pool.arch, size, None)
    if cfg.pretrain is not None:
        _network("pretrain", cfg.pretrain.arch, size, None)
    else:
        _network("posttrain", cfg.posttrain.arch, size, None)
    if cfg.condense_pairs is not None and cfg.pretrain is not None:
        _network("squeeze", cfg.squeeze.arch, size, cfg.squeeze.stem)
        return
    layers = {
        name: count_batchnorm(_plain(name, network.arch, size, network.stem))
        for name, network in cfg.squeezes.items()
    }
    if cfg.scorer is not None:
        _network("squeeze_scorer", cfg.scorer.arch, size, cfg.scorer.stem)
    if cfg.condense is not None:
        check_embedding(cfg.condense.arch, size)
    for step, section in cfg.recoveries.items():
        for name, network in cfg.teachers_of(step).items():
            _check_layers(f"{name}.arch = {network.arch}", layers[name], step, section)


def _network(key: str, arch: str, size: int, stem: Stem | None) -> nn.Module:
    try:
        return create_model(arch, 1, size, stem)
    except ConfigError as error:
        raise ConfigError(f"{key}.arch: {error}") from error


def _plain(key: str, arch: str, size: int, stem: Stem | None) -> nn.Module:
    net = _network(key, arch, size, stem)
    try:
        check_plain(net)
    except ConfigError as error:
        raise ConfigError(f"{key}.arch = {arch}: {error}") from error
    return net


def _check_layers(network: str, layers: int, step: str, cfg: RecoverConfig) -> None:
    """Refuse a network without the BatchNorm layers that a step of recovery is to match."""
    if not layers:
        raise ConfigError(
            f"{network} has no BatchNorm layer, whose statistics {step} matches; choose a network "
            "that has, such as resnet8"
        )
    beyond = [number for number in cfg.layer_weights if number >= layers]
    if beyond:
        raise ConfigError(
            f"{step}.layer_weights: there is no layer {beyond[0]}; {network} has {layers} "
            "BatchNorm layers, counted from 0"
        )


def _set_aside(run: RunDirectory, steps: Sequence[Step]) -> None:
    names = [step.name for step in steps]
    aside = run.set_aside(names)
    if aside is not None:
        say(f"moved {names[0]} and what follows from it to {aside}")


def _position(steps: Sequence[Step], name: str, option: str) -> int:
    names = [step.name for step in steps]
    if name not in names:
        raise ConfigError(f"{option} {name}: no such step; steps: {', '.join(names)}")
    return names.index(name)


def _measures(run: RunDirectory, steps: Sequence[Step]) -> bool:
    """Whether a step is left whose time will stand in the report."""
    return any(run.done(step.name) is None for step in steps if step.name != "report")


def _remember(run: RunDirectory, cfg: RunConfig, device: str, measures: bool) -> None:
    """Write the resolved configuration and the environment at the top of the run directory."""
    with replacing(run.path / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False))
    if measures or not (run.path / "environment.json").exists():
        write_json(run.path / "environment.json", environment(device, torch.get_num_threads()))
