"""One seed of one arm: sparsity training, then slimming, recalibration, fine-tuning per ratio."""

import copy
import time
from typing import Any

from torch import nn

from scdd.checkpoint import fill, load_weights, save_weights
from scdd.stages.posttrain import new_student, train_student
from scdd_apps.prune.channels import achieved, check_achieved, select
from scdd_apps.prune.place import Place
from scdd_apps.prune.pruned_file import save_pruned
from scdd_apps.prune.recalibration import recalibrate
from scdd_apps.prune.results import Row
from scdd_apps.prune.sparsity import l1_pull, scales_of, share_near_zero
from scdd_apps.prune.surgery import coupled_channels, remove_channels
from scdd_apps.report_cost import macs, parameters


def prune_one(place: Place, ratios: list[float]) -> None:
    """Train one sparse network, then a pruned one per ratio; every row is kept when finished."""
    sparse = _sparse_network(place)
    layers = coupled_channels(sparse, place.data.image_size)
    facts = {
        "pull": place.plan.pull,
        "lambda": place.strength(),
        "share_near_zero": share_near_zero(layers),
        "parameters_before": parameters(sparse),
        "macs_before": macs(sparse, place.data.image_size),
    }
    before = place.score(sparse)
    for ratio in ratios:
        started = time.monotonic()
        model = copy.deepcopy(sparse)
        removed = select(layers, ratio)
        history = remove_channels(model, place.data.image_size, removed)
        widths = {
            layer.root: layer.width for layer in coupled_channels(model, place.data.image_size)
        }
        reached = 1 - sum(widths.values()) / sum(layer.width for layer in layers)
        assert abs(reached - achieved(layers, removed)) < 1e-9
        check_achieved(place.plan.arch, ratio, reached)
        top1 = {"sparse": before, "pruned": place.score(model)}
        recalibrate(model, place.data, place.plan.fine_tuning.batch, place.seed)
        top1["recalibrated"] = place.score(model)
        _fine_tune(place, model, ratio)
        top1["fine-tuned"] = place.score(model)
        name = f"{place.plan.arch}-{place.kept.path(place.key(ratio)).stem.rpartition('-')[2]}"
        row: Row = {
            **facts,
            "arm": place.arm,
            "seed": place.seed,
            "ratio": ratio,
            "achieved": reached,
            "parameters": parameters(model),
            "macs": macs(model, place.data.image_size),
            "widths": widths,
            "top1": top1,
            "weights": f"{name}.safetensors",
            "seconds": round(time.monotonic() - started, 1),
        }
        save_pruned(place.inputs.out / row["weights"], model, history, _about(place, row))
        place.kept.keep(place.key(ratio), row)
        place.checkpoint(ratio).remove()


def _sparse_network(place: Place) -> nn.Module:
    """The network after sparsity training: kept from before, or trained now."""
    cfg, data = place.plan.sparsity, place.data
    model = new_student(place.plan.arch, data, place.seed).to(place.device)
    path = place.kept.path(place.key(None), ".safetensors")
    if path.is_file():
        return fill(model, load_weights(path)[0], path)
    strength = place.strength()
    print(
        f"{place.arm}, seed {place.seed}: pull {place.plan.pull:g} over {cfg.epochs} epochs "
        f"gives lambda {strength:.2e}",
        flush=True,
    )
    layers = coupled_channels(model, data.image_size)
    checkpoint = place.checkpoint(None)
    train_student(
        cfg,
        model,
        data,
        place.plan.labels,
        place.seed,
        place.device,
        checkpoint,
        after_backward=l1_pull(scales_of(layers), strength),
        after_epoch=place.show("sparsity training"),
    )
    save_weights(path, model.state_dict(), {"key": place.key(None)})
    checkpoint.remove()
    return model


def _fine_tune(place: Place, model: nn.Module, ratio: float) -> None:
    train_student(
        place.plan.fine_tuning,
        model,
        place.data,
        place.plan.labels,
        place.seed,
        place.device,
        place.checkpoint(ratio),
        after_epoch=place.show(f"fine-tuning at ratio {ratio:g}"),
    )


def _about(place: Place, row: Row) -> dict[str, Any]:
    header = place.data.header
    return {
        **{name: row[name] for name in ("ratio", "achieved", "widths", "arm", "seed", "top1")},
        "classes": list(header.class_names),
        "mean": header.mean,
        "std": header.std,
        "trained_on": header.digest,
    }
