"""The experiment of `scdd-apps prune`: which rows there are, in which order, and their report."""

from collections.abc import Mapping, Sequence

import torch

from scdd.posttraining import Labels, steps_per_epoch
from scdd.progress import Bar, duration
from scdd.run import RunDirectory
from scdd.stages.posttrain import new_student, open_for_training
from scdd_apps.files import Inputs, Rows
from scdd_apps.prune.before import unpruned
from scdd_apps.prune.costs import costs_text, measure_costs
from scdd_apps.prune.live_teacher import Taught
from scdd_apps.prune.place import Goal, Place
from scdd_apps.prune.plan import Plan
from scdd_apps.prune.plot import draw_sweep
from scdd_apps.prune.pruning import prune_to
from scdd_apps.prune.results import Row, details_text, results_text, training_lines
from scdd_apps.prune.start import load_start
from scdd_apps.prune.variants import SCRATCH
from scdd_apps.report import write_results
from scdd_apps.report_cost import step_seconds


def prune_on(inputs: Inputs, plan: Plan, device: torch.device) -> None:
    """Run the plan on the file, and on the baseline if there is one; print and write the table.

    Rows, and networks before pruning, that were finished before with the same file and settings
    are taken as they are.

    Raises:
        UserError: if a file cannot be used.
        RunError: if training diverges.
    """
    places = _places(inputs, plan, device)
    with RunDirectory(inputs.out).locked():
        print(inputs.describe(), flush=True)
        rows = _run(plan, places)
        text = results_text(inputs, plan, rows, places[0].data)
        costs = measure_costs(plan, rows, inputs.out, inputs.header.image_size, device)
        text += "\n\n" + costs_text(costs, inputs.header.image_size)
        result = {
            "arch": plan.arch,
            "variant": plan.variant,
            "training": training_lines(plan, rows, places[0].data),
            "rows": rows,
            "costs": costs,
        }
        title = f"{inputs.header.dataset}: {plan.arch} pruned, variant {plan.variant}"
        plotted = ""
        if inputs.val is not None:
            draw_sweep(inputs.out / "prune.png", title, rows)
            plotted = "\n\n![Accuracy over multiply-accumulates](prune.png)"
        full = f"{text}{plotted}\n\n{details_text(plan, rows)}"
        write_results(inputs, "prune", title, full, result, device)
    print(f"\n{text}\n\n{inputs.out / 'report.md'}, results.json, *.safetensors")


def _places(inputs: Inputs, plan: Plan, device: torch.device) -> list[Place]:
    """Every seed of every arm; the arms of a seed follow each other."""
    kept, bar, start = Rows(inputs.out), Bar("prune", 0), None
    kinds: tuple[Labels, ...] = (plan.labels,)
    if plan.checkpoint is not None:
        start = load_start(plan.checkpoint, plan.arch, inputs.header).to(device)
        start.requires_grad_(False)
        kinds = ()  # no label that is stored is read
    data = {}
    for arm, path in inputs.arms.items():
        opened = open_for_training(path, kinds, plan.scratch, device)
        data[arm] = opened if start is None else Taught(opened, start)
    return [
        Place(inputs, plan, arm, seed, images, start, device, kept, bar)
        for seed in range(plan.seeds)
        for arm, images in data.items()
    ]


def _run(plan: Plan, places: Sequence[Place]) -> list[Row]:
    missing = {
        place: [goal for goal in place.goals if place.finished(goal) is None] for place in places
    }
    every = sum(len(place.goals) for place in places)
    left = sum(map(len, missing.values()))
    if left < every:
        print(f"{every - left} rows were finished before")
    _announce(plan, {place: goals for place, goals in missing.items() if goals})
    with places[0].bar:
        for place, goals in missing.items():
            if goals:
                before = unpruned(place)
                for goal in goals:
                    prune_to(place, goal, before)
    rows = [place.finished(goal) for goal in places[0].goals for place in places]
    return [row for row in rows if row is not None]


def _announce(plan: Plan, missing: Mapping[Place, Sequence[Goal]]) -> None:
    """Print the plan and how long it will take; set the length of the bar."""
    if not missing:
        return
    tuning = sum(cfg.epochs for cfg in plan.fine_tuning)
    full = 0.0
    for place, goals in missing.items():
        trained = place.path(None, ".safetensors").is_file()
        first = plan.first.epochs if plan.first and not trained else 0
        epochs = [plan.scratch.epochs if g.channels == SCRATCH else tuning for g in goals]
        place.bar.total += first + sum(epochs)
        # Layers lose inputs and outputs; only one of the two is counted on.
        full += first + sum(n * (1 - g.ratio) for n, g in zip(epochs, goals, strict=True))
    place = next(iter(missing))
    net = new_student(plan.arch, place.data, place.seed)
    each = steps_per_epoch(plan.scratch, place.data)
    seconds = full * each * step_seconds(plan.scratch, net, place.data, plan.labels)
    print(
        f"{place.bar.total} epochs = {place.bar.total * each} steps of {plan.arch} to train, at "
        f"most about {duration(seconds)}, from the time of one step",
        flush=True,
    )
