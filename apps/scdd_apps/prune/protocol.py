"""The experiment of `scdd-apps prune`: which rows there are, in which order, and their table."""

import torch

from scdd.distilled import DistilledDataset
from scdd.posttraining import steps_per_epoch
from scdd.progress import Bar, duration
from scdd.run import RunDirectory
from scdd.stages.posttrain import new_student, open_for_training
from scdd_apps.files import Inputs, Rows
from scdd_apps.prune.place import Place
from scdd_apps.prune.plan import Plan
from scdd_apps.prune.pruning import prune_one
from scdd_apps.prune.results import Row, results_text
from scdd_apps.report import write_results
from scdd_apps.report_cost import step_seconds


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
        Place(inputs, plan, arm, seed, images, device, kept, bar)
        for seed in range(plan.seeds)
        for arm, images in data.items()
    ]
    missing = {
        place: [ratio for ratio in plan.ratios if place.finished(ratio) is None] for place in places
    }
    left = sum(map(len, missing.values()))
    if left < len(places) * len(plan.ratios):
        print(f"{len(places) * len(plan.ratios) - left} rows were finished before")
    _announce(plan, {place: ratios for place, ratios in missing.items() if ratios})
    with bar:
        for place, ratios in missing.items():
            if ratios:
                prune_one(place, ratios)
    rows = [place.finished(ratio) for ratio in plan.ratios for place in places]
    return [row for row in rows if row is not None]


def _announce(plan: Plan, missing: dict[Place, list[float]]) -> None:
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
