"""The network before pruning: a new one or that of a checkpoint, after its sparsity training."""

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from scdd.checkpoint import fill, load_weights, save_weights
from scdd.stages.posttrain import new_student
from scdd_apps.prune.channels import Coupled
from scdd_apps.prune.place import Place
from scdd_apps.prune.sparsity import l1_pull, scale_histogram, scales_of, share_near_zero
from scdd_apps.prune.surgery import coupled_channels
from scdd_apps.report_cost import macs, parameters


@dataclass(frozen=True, eq=False)
class Unpruned:
    """A trained network and what is known of it."""

    model: nn.Module
    layers: list[Coupled]
    facts: dict[str, Any]
    """For the rows of the table."""
    top1: dict[str, float | None]
    """By stage."""


def unpruned(place: Place) -> Unpruned:
    """Take the network of a place before pruning: kept from before, or trained now."""
    plan = place.plan
    if place.start is None:
        model = new_student(plan.arch, place.data, place.seed).to(place.device)
    else:
        model = copy.deepcopy(place.start).requires_grad_(True)
    top1: dict[str, float | None] = {}
    if place.start is not None:
        top1["unpruned"] = place.score(model)
    layers = coupled_channels(model, place.data.image_size)
    facts: dict[str, Any] = {
        "parameters_before": parameters(model),
        "macs_before": macs(model, place.data.image_size),
    }
    if plan.first is not None:
        _train(place, model, layers)
        top1["sparse" if plan.has_l1 else "unpruned"] = place.score(model)
    if plan.criterion == "slimming":
        facts |= {
            "pull": plan.pull if plan.has_l1 else None,
            "lambda": place.strength(),
            "share_near_zero": share_near_zero(layers),
            "histogram": scale_histogram(layers),
        }
    return Unpruned(model, layers, facts, top1)


def _train(place: Place, model: nn.Module, layers: list[Coupled]) -> None:
    plan, path = place.plan, place.path(None, ".safetensors")
    assert plan.first is not None
    if path.is_file():
        fill(model, load_weights(path)[0], path)
        return
    strength, pull = place.strength(), None
    if strength is not None:
        print(
            f"{place.arm}, seed {place.seed}: pull {plan.pull:g} over {plan.first.epochs} epochs "
            f"gives lambda {strength:.2e}",
            flush=True,
        )
        pull = l1_pull(scales_of(layers), strength)
    stage = "training before pruning" if pull is None else "sparsity training"
    place.train(model, plan.first, None, stage, after_backward=pull)
    save_weights(path, model.state_dict(), {"key": place.key(None)})
    place.path(None, ".pt").unlink(missing_ok=True)
