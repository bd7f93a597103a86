"""The experiment of `scdd-apps prune`: sparsity training, slimming, recalibration, fine-tuning."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from scdd import __version__
from scdd.checkpoint import Checkpoint, fill, load_weights, save_weights
from scdd.distilled import DistilledDataset
from scdd.posttraining import steps_per_epoch
from scdd.progress import Bar, duration
from scdd.run import RunDirectory
from scdd.stages.posttrain import new_student, open_for_training, train_student
from scdd.training import evaluate
from scdd_apps.files import Inputs, Rows, training_identity
from scdd_apps.prune.channels import achieved, check_achieved, select
from scdd_apps.prune.plan import Plan
from scdd_apps.prune.pruned_file import save_pruned
from scdd_apps.prune.recalibration import recalibrate
from scdd_apps.prune.results import Row, results_text
from scdd_apps.prune.sparsity import (
    l1_pull,
    l1_strength,
    scales_of,
    share_near_zero,
)
from scdd_apps.prune.surgery import coupled_channels, remove_channels
from scdd_apps.report import write_results
from scdd_apps.report_cost import macs, parameters, step_seconds

CHECKPOINT_MINUTES = 5.0


@dataclass(frozen=True, eq=False)
class _Place:
    """Where one seed of one arm works: its images, its kept files, its device, its bar."""

    inputs: Inputs
    plan: Plan
    arm: str
    seed: int
    data: DistilledDataset
    device: torch.device
    kept: Rows
    bar: Bar

    def key(self, ratio: float | None) -> dict[str, Any]:
        """What decides the row of a ratio; None: the network before pruning."""
        plan = self.plan
        key = {
            "app": "prune",
            "scdd": __version__,
            "file": self.data.header.digest,
            "arch": plan.arch,
            "arm": self.arm,
            "labels": plan.labels,
            "seed": self.seed,
            "pull": plan.pull,
            "sparsity": training_identity(plan.sparsity),
        }
        if ratio is None:
            return key
        tuning = training_identity(plan.fine_tuning)
        return {**key, "ratio": ratio, "fine_tuning": tuning, "scored_on": self.inputs.val_digest}

    def score(self, model: nn.Module) -> float | None:
        """Top-1 in per cent on the real images; None without any."""
        val = self.inputs.val
        return evaluate(model, val, self.device).top1 if val is not None else None

    def show(self, stage: str) -> Callable[[int, nn.Module], None]:
        """What to call after each epoch of a training."""
        return partial(self._advance, self.bar.done, f"{stage}, {self.arm}, seed {self.seed}")

    def _advance(self, before: int, note: str, epoch: int, scored: nn.Module) -> None:
        self.bar.done = before + epoch - 1
        self.bar.advance(note=note)


def prune_on(inputs: Inputs, plan: Plan, device: torch.device) -> None:
    """Run the plan on the file, and on the baseline if there is one; print and write the table.

    Rows, and networks after sparsity training, that were finished before with the same file and
    settings are taken as they are.

    Raises:
        UserError: if a file cannot be used.
        RunError: if training diverges.
    """
    data = {
        arm: open_for_training(path, (plan.labels,), plan.sparsity, device)
        for arm, path in inputs.arms.items()
    }
    with RunDirectory(inputs.out).locked():
        print(inputs.describe(), flush=True)
        rows = _run(inputs, plan, data, device)
        text = results_text(inputs, plan, rows, next(iter(data.values())))
        result = {
            "app": "prune",
            "file": str(inputs.file),
            "digest": inputs.header.digest,
            "rows": rows,
        }
        title = f"{inputs.header.dataset}: {plan.arch} pruned by network slimming"
        write_results(inputs.out, title, text, result, device)
    print(f"\n{text}\n\n{inputs.out / 'report.md'}, results.json, *.safetensors")


def _run(
    inputs: Inputs, plan: Plan, data: dict[str, DistilledDataset], device: torch.device
) -> list[Row]:
    kept, bar = Rows(inputs.out), Bar("prune", 0)
    places = [
        _Place(inputs, plan, arm, seed, images, device, kept, bar)
        for seed in range(plan.seeds)
        for arm, images in data.items()
    ]
    missing = {
        place: [ratio for ratio in plan.ratios if _finished(place, ratio) is None]
        for place in places
    }
    left = sum(map(len, missing.values()))
    if left < len(places) * len(plan.ratios):
        print(f"{len(places) * len(plan.ratios) - left} rows were finished before")
    _announce(plan, {place: ratios for place, ratios in missing.items() if ratios})
    with bar:
        for place, ratios in missing.items():
            if ratios:
                _prune_one(place, ratios)
    rows = [_finished(place, ratio) for ratio in plan.ratios for place in places]
    return [row for row in rows if row is not None]


def _finished(place: _Place, ratio: float) -> Row | None:
    row = place.kept.find(place.key(ratio))
    if row is None or not (place.inputs.out / row["weights"]).is_file():
        return None
    return row


def _announce(plan: Plan, missing: dict[_Place, list[float]]) -> None:
    """Print the plan and how long it will take; set the length of the bar."""
    seconds = 0.0
    for place, ratios in missing.items():
        to_train = 0 if place.kept.path(place.key(None), ".safetensors").is_file() else 1
        place.bar.total += to_train * plan.sparsity.epochs + len(ratios) * plan.fine_tuning.epochs
    if not missing:
        return
    place = next(iter(missing))
    net = new_student(plan.arch, place.data, place.seed)
    seconds = step_seconds(plan.sparsity, net, place.data, plan.labels)
    steps = place.bar.total * steps_per_epoch(plan.sparsity, place.data)
    print(
        f"{place.bar.total} epochs = {steps} steps of {plan.arch} to train, at most about "
        f"{duration(seconds * steps)}, from the time of one step",
        flush=True,
    )


def _prune_one(place: _Place, ratios: list[float]) -> None:
    """Train one sparse network, then a pruned one per ratio; every row is kept when finished."""
    sparse = _sparse_network(place)
    layers = coupled_channels(sparse, place.data.image_size)
    facts = {
        "pull": place.plan.pull,
        "lambda": _strength(place),
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
        _checkpoint(place, ratio).remove()


def _sparse_network(place: _Place) -> nn.Module:
    """The network after sparsity training: kept from before, or trained now."""
    cfg, data = place.plan.sparsity, place.data
    model = new_student(place.plan.arch, data, place.seed).to(place.device)
    path = place.kept.path(place.key(None), ".safetensors")
    if path.is_file():
        return fill(model, load_weights(path)[0], path)
    strength = _strength(place)
    print(
        f"{place.arm}, seed {place.seed}: pull {place.plan.pull:g} over {cfg.epochs} epochs "
        f"gives lambda {strength:.2e}",
        flush=True,
    )
    layers = coupled_channels(model, data.image_size)
    checkpoint = _checkpoint(place, None)
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


def _fine_tune(place: _Place, model: nn.Module, ratio: float) -> None:
    train_student(
        place.plan.fine_tuning,
        model,
        place.data,
        place.plan.labels,
        place.seed,
        place.device,
        _checkpoint(place, ratio),
        after_epoch=place.show(f"fine-tuning at ratio {ratio:g}"),
    )


def _strength(place: _Place) -> float:
    cfg = place.plan.sparsity
    return l1_strength(place.plan.pull, cfg, steps_per_epoch(cfg, place.data))


def _checkpoint(place: _Place, ratio: float | None) -> Checkpoint:
    return Checkpoint(place.kept.path(place.key(ratio), ".pt"), CHECKPOINT_MINUTES)


def _about(place: _Place, row: Row) -> dict[str, Any]:
    header = place.data.header
    return {
        **{name: row[name] for name in ("ratio", "achieved", "widths", "arm", "seed", "top1")},
        "classes": list(header.class_names),
        "mean": header.mean,
        "std": header.std,
        "trained_on": header.digest,
    }
