"""One row of the table: channels removed step by step, or new weights of the shape found."""

import copy
import time
from collections.abc import Sequence
from typing import Any

from torch import nn

from scdd.seeding import generator
from scdd.stages.posttrain import new_student
from scdd_apps.prune.before import Unpruned
from scdd_apps.prune.channels import (
    Coupled,
    at_random,
    check_achieved,
    floors_of,
    select,
)
from scdd_apps.prune.criteria import IMPORTANCE
from scdd_apps.prune.place import Goal, Place
from scdd_apps.prune.pruned_file import load_cut, save_pruned
from scdd_apps.prune.recalibration import recalibrate
from scdd_apps.prune.results import Row
from scdd_apps.prune.surgery import (
    History,
    coupled_channels,
    remove_channels,
    replay,
)
from scdd_apps.prune.variants import RANDOM, SCRATCH
from scdd_apps.report_cost import macs, parameters

Cuts = list[dict[str, int]]
"""Channels removed per step, by layer."""
Scores = dict[str, float | None]
"""Top-1 in per cent by stage; None without real images."""


def prune_to(place: Place, goal: Goal, before: Unpruned) -> None:
    """Make the row of a goal and keep it; the row that a control goes by is finished before."""
    started = time.monotonic()
    size = place.data.image_size
    top1: Scores = {}
    found = place.finished(Goal(place.plan.criterion, goal.ratio))
    if goal.channels == SCRATCH:
        assert found is not None
        model, history = _from_scratch(place, goal, found)
        cuts = found["cuts"]
    else:
        model, history, cuts, top1 = _step_by_step(place, goal, before, found)
        top1 = {**before.top1, **top1}
    top1["fine-tuned"] = place.score(model)
    layers = coupled_channels(model, size)
    name = f"{place.plan.arch}-{place.path(goal, '').name.rpartition('-')[2]}"
    row: Row = {
        **before.facts,
        "arm": place.arm,
        "seed": place.seed,
        "channels": goal.channels,
        "ratio": goal.ratio,
        "achieved": _achieved(before, layers),
        "parameters": parameters(model),
        "macs": macs(model, size),
        "widths": {layer.root: layer.width for layer in layers},
        "cuts": cuts,
        "top1": top1,
        "weights": f"{name}.safetensors",
        "seconds": round(time.monotonic() - started, 1),
    }
    save_pruned(place.inputs.out / row["weights"], model, history, _about(place, row))
    place.kept.keep(place.key(goal), row)
    for path in place.kept.folder.glob(f"{place.path(goal, '').name}.*"):
        if path.suffix != ".json":
            path.unlink()


def _step_by_step(
    place: Place, goal: Goal, before: Unpruned, found: Row | None
) -> tuple[nn.Module, History, Cuts, Scores]:
    """Remove channels and fine-tune, as often as the plan says; scores are those of the last."""
    plan, size = place.plan, place.data.image_size
    model = copy.deepcopy(before.model)
    history: History = []
    cuts: Cuts = []
    top1: Scores = {}
    for step, cfg in enumerate(plan.fine_tuning):
        path = place.path(goal, f".step{step}.safetensors")
        last = step + 1 == len(plan.fine_tuning)
        if not path.is_file() or last:
            layers = coupled_channels(model, size)
            removed = _choose(place, goal, before, found, layers, step)
            history = [*history, *remove_channels(model, size, removed)]
            cuts = [*cuts, {root: len(channels) for root, channels in removed.items()}]
            if last:
                reached = _achieved(before, coupled_channels(model, size))
                check_achieved(plan.arch, goal.ratio, reached)
            top1 = _recalibrated(place, model)
            stage = f"fine-tuning at ratio {goal.ratio:g} ({goal.channels})"
            place.train(model, cfg, goal, stage, part=f".step{step}")
        if not last:
            # Read back even where it was just written: a run that was stopped must not differ.
            if not path.is_file():
                save_pruned(path, model, history, {"cuts": cuts})
                place.path(goal, f".step{step}.pt").unlink(missing_ok=True)
            model, about = load_cut(path)
            model.to(place.device)
            history, cuts = about["pruning_history"], about["cuts"]
    return model, history, cuts, top1


def _choose(
    place: Place,
    goal: Goal,
    before: Unpruned,
    found: Row | None,
    layers: list[Coupled],
    step: int,
) -> dict[str, list[int]]:
    """The channels of one step, by layer."""
    plan = place.plan
    if goal.channels == RANDOM:
        assert found is not None
        draw = generator(place.seed, "apps.prune.random", step)
        return at_random(layers, found["cuts"][step], draw)
    whole = sum(layer.width for layer in before.layers)
    gone = whole - sum(layer.width for layer in layers)
    wanted = round(goal.ratio * whole * (step + 1) / len(plan.fine_tuning)) - gone
    return select(
        layers, wanted, IMPORTANCE[plan.criterion], floors_of(before.layers), plan.round_to
    )


def _achieved(before: Unpruned, layers: Sequence[Coupled]) -> float:
    """Share of the channels before pruning that are gone."""
    return 1 - sum(each.width for each in layers) / sum(each.width for each in before.layers)


def _recalibrated(place: Place, model: nn.Module) -> Scores:
    """Score a network just cut, without and with new BatchNorm statistics; keep what is wanted."""
    top1: Scores = {"pruned": place.score(model)}
    if place.plan.has_batchnorm:
        other = model if place.plan.bn_recal else copy.deepcopy(model)
        recalibrate(other, place.data, place.plan.fine_tuning[0].batch, place.seed)
        top1["recalibrated"] = place.score(other)
    return top1


def _from_scratch(place: Place, goal: Goal, found: Row) -> tuple[nn.Module, History]:
    """Train the shape of a finished row from new weights."""
    _, about = load_cut(place.inputs.out / found["weights"])
    model = new_student(place.plan.arch, place.data, place.seed).to(place.device)
    inputs = {name: p[0].numel() for name, p in model.named_parameters() if p.dim() > 1}
    replay(model, place.data.image_size, about["pruning_history"])
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            # As if drawn for this many inputs: without BatchNorm signals would die out.
            parameter.data *= (inputs[name] / parameter[0].numel()) ** 0.5
    stage = f"new weights at ratio {goal.ratio:g}"
    place.train(model, place.plan.scratch, goal, stage)
    return model, about["pruning_history"]


def _about(place: Place, row: Row) -> dict[str, Any]:
    header = place.data.header
    named = ("channels", "ratio", "achieved", "widths", "arm", "seed", "top1")
    return {
        **{name: row[name] for name in named},
        "variant": place.plan.variant,
        "classes": list(header.class_names),
        "mean": header.mean,
        "std": header.std,
        "trained_on": header.digest,
    }
