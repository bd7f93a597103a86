"""The table of a run of krr_st or boost: what its pairs teach, and what they cost."""

from typing import Any

from scdd.config.condense_pairs import PretrainConfig
from scdd.progress import duration
from scdd.tables import change, counted, mean_sd, size, table


def pairs_table(result: dict[str, Any]) -> str:
    """A row for each thing that networks learnt from, a column for each score of each task."""
    rows, tasks = result["rows"], result["tasks"]
    arms = {row["arm"]: str(row["pairs"] or "-") for row in rows}
    columns = list(dict.fromkeys((row["task"], row["by"]) for row in rows))
    lines = [
        [
            arm,
            seen,
            *(
                mean_sd(
                    [
                        row["top1"]
                        for row in rows
                        if (row["arm"], row["task"], row["by"]) == (arm, task, by)
                    ]
                )
                for task, by in columns
            ),
        ]
        for arm, seen in arms.items()
    ]
    shown = [f"{task}, {by}" if len(tasks) > 1 else by for task, by in columns]
    config, environment = result["config"], result["environment"]
    training = PretrainConfig(**config["pretrain"])
    networks = f"mean +- sd of {result['n']} networks" if result["n"] > 1 else "one network"
    scored = "; ".join(
        f"{task['name']}: {task['train_images']} real training and {task['val_images']} real "
        f"validation images, {task['classes']} classes"
        for task in tasks
    )
    peak = max(value["host"] for value in result["peak_bytes"].values())
    hardware = environment.get("gpu") or environment["processor"]
    took = f"{duration(sum(result['seconds'].values()))} and {size(peak)}"
    note = (
        f"Top-1 % on real validation images, {networks}. {scored}. Recipe {config['recipe']}, "
        f"method {config['method']}; {training.arch}, {training.describe()}. Stored: "
        f"{result['bill']}.{_fall(result['outer_loss'])} Teacher: "
        f"{config['squeeze']['arch']}, {config['squeeze']['objective']['name']}. The whole run "
        f"took {took} on {hardware}, {counted(environment['cpu_threads'], 'thread')}, torch "
        f"{environment['versions']['torch']}, commit {result['commit']}."
    )
    return f"{table(['learnt from', 'images seen', *shown], lines)}\n\n{note}\n"


def _fall(losses: dict[str, float]) -> str:
    """How the outer loss fell, where pairs were learnt by one."""
    if not losses:
        return ""
    start, end = losses["start"], losses["end"]
    said = f"before {start:.3g}, after {end:.3g} ({change(start, end)})"
    return f" Outer loss of new models {said}."
