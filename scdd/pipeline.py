"""`distill` runs the steps of a method that are not done yet."""

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
import yaml

from scdd.config.run import RunConfig
from scdd.deadline import Deadline
from scdd.distributed import joined
from scdd.errors import ConfigError, OutOfTime, RunError
from scdd.files import replacing, write_json
from scdd.method_steps import Step, steps_of
from scdd.network_checks import check_networks
from scdd.progress import duration, say
from scdd.report import print_report
from scdd.run import PeakMemory, RunDirectory, environment, file_digests
from scdd.step_identity import gone_inputs, inputs_of, settings_of
from scdd.steps import Context, check_later_steps

TORN = ".*.tmp"
"""What `replacing` was writing when its process was killed."""


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
    check_networks(cfg)
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
        gone = gone_inputs(context.cfg, step)
        if not gone:
            run.check_inputs(step.name, inputs_of(context, step))
        note = f"; {gone} are gone, so it was not compared with them" if gone else ""
        say(f"{step.name}: done before ({duration(done['seconds'])}){note}")
    elif world.leads:
        context.deadline.begin(step.name)
        inputs = inputs_of(context, step)
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


def _remove(paths: Iterable[Path]) -> None:
    """Remove files that we made and nobody needs or, under the lock, writes any more."""
    for path in list(paths):
        path.unlink()


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
