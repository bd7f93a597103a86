"""Training the networks that are missing: announced, shared by processes, one file each."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from scdd.checkpoint import Checkpoint
from scdd.distributed import World
from scdd.files import write_json
from scdd.progress import Bar, duration, say
from scdd_apps.crossarch.compared import Compared, L, Row
from scdd_apps.files import Rows
from scdd_apps.report import count_cell

CHECKPOINT_MINUTES = 5.0
FAILED = ".error"
"""Ends the name of the file that says why a row is not there."""


def train_missing(
    out: Path, compared: Compared[L], world: World
) -> tuple[dict[L, Row], dict[str, str]]:
    """Train every network that has no row yet; each process of `world` takes its share of them.

    An architecture that fails is left out from then on; the others go on.

    Returns:
        Rows by network, and why an architecture failed by its name: on the leading process those
        of all, on the others what they know.
    """
    learners, kept = compared.learners, Rows(out)
    keys = {learner: compared.key(learner) for learner in learners}
    missing = [learner for learner in learners if kept.find(keys[learner]) is None]
    world.barrier()  # Before one of them is there, all processes know which are not.
    if len(missing) < len(learners):
        say(f"{len(learners) - len(missing)} of {len(learners)} students were trained before")
    failed = {learner: kept.path(keys[learner], FAILED) for learner in missing}
    if world.leads:
        for path in failed.values():
            path.unlink(missing_ok=True)  # Of an earlier attempt.
        _announce(compared, missing, failed, world.size)
    world.barrier()
    mine = world.share(missing)
    with Bar("crossarch", sum(map(compared.units, mine))) as bar:
        for learner in mine:
            before = bar.done
            if learner.arch not in _reasons(failed):
                checkpoint = Checkpoint(kept.path(keys[learner], ".pt"), CHECKPOINT_MINUTES)
                try:
                    row = compared.train(learner, checkpoint, bar)
                except Exception as error:  # a net may fail in any way; the others are worth it
                    _fail([learner], error, failed)
                else:
                    kept.keep(keys[learner], row)
                    checkpoint.remove()
            bar.done = before + compared.units(learner)
    world.barrier()
    found = {learner: kept.find(keys[learner]) for learner in learners}
    return {learner: row for learner, row in found.items() if row}, _reasons(failed)


def _announce(
    compared: Compared[L], missing: Sequence[L], failed: Mapping[L, Path], processes: int
) -> None:
    """Print what will be trained and for how long; an architecture that cannot be fails here."""
    seconds = 0.0
    for arch in dict.fromkeys(learner.arch for learner in missing):
        own = [learner for learner in missing if learner.arch == arch]
        try:
            forecast = compared.forecast(own)
        except Exception as error:
            _fail(own, error, failed)
            continue
        seconds += forecast.seconds
        say(
            f"{arch}: {count_cell(forecast.parameters)} parameters, {forecast.training}; "
            f"{len(own)} x about {duration(forecast.seconds / len(own))}"
        )
    if seconds:
        shared = f" shared by {processes} processes" if processes > 1 else ""
        say(f"about {duration(seconds / processes)} in all{shared}, from the time of one step")


def _fail(learners: Sequence[L], error: Exception, failed: Mapping[L, Path]) -> None:
    """Record why an architecture fails, where every process finds it."""
    arch, lines = learners[0].arch, str(error).strip().splitlines()
    reason = f"{arch}: {lines[0] if lines else type(error).__name__}"
    print(f"error: {reason}", flush=True)
    for learner in learners:
        write_json(failed[learner], {"error": reason})


def _reasons(failed: Mapping[L, Path]) -> dict[str, str]:
    """By architecture, the first reason of those that are recorded so far."""
    reasons: dict[str, str] = {}
    for learner, path in failed.items():
        if path.exists():
            reasons.setdefault(learner.arch, json.loads(path.read_text(encoding="utf-8"))["error"])
    return reasons
