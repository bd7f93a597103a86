"""`scdd evaluate`: one architecture trained on a distilled file, by its run or another recipe."""

from collections.abc import Sequence
from pathlib import Path

import torch

from scdd.companions import companions_of
from scdd.config.load import load_config, posttrain_config, read_run_config
from scdd.errors import ConfigError
from scdd.posttraining import Labels, steps_per_epoch
from scdd.progress import Bar
from scdd.stages.posttrain import new_student, open_for_training, train_student
from scdd.steps import student_seed
from scdd.tables import counted, mean_sd, table
from scdd.training import evaluate


def evaluate_file(
    file: Path,
    arch: str,
    data: Path | None,
    labels: str,
    seeds: int,
    overrides: Sequence[str],
    device: torch.device,
    recipe: str | None = None,
) -> str:
    """Train `seeds` students on `file` and on its baseline; return the table.

    They are trained as the section `posttrain` of `recipe` says, a preset or a YAML file; without
    one as the run that made the file trains its own.

    Raises:
        UserError: if the file, the data or a setting cannot be used.
    """
    if labels not in ("soft", "hard"):
        raise ConfigError(f"--labels {labels}: choose soft or hard")
    kind: Labels = "soft" if labels == "soft" else "hard"
    for override in overrides:
        key = override.partition("=")[0]
        if key in ("arch", "labels", "seeds"):
            raise ConfigError(f"--set {override}: give it as the option --{key}")
    own = load_config(recipe) if recipe is not None else read_run_config(file.parent)
    cfg = posttrain_config(own.posttrain if own else None, [f"arch={arch}", *overrides])
    found = companions_of(file, data, None)
    files = {file.name: file}
    if found.baseline is not None:
        files[f"{found.baseline.name} (random real)"] = found.baseline
    opened = {name: open_for_training(path, (kind,), cfg, device) for name, path in files.items()}
    if found.val is None:
        raise ConfigError(f"{file}: there are no real images to score on; give --data DIR")
    rows = []
    with Bar("evaluate", len(files) * seeds * cfg.epochs) as bar:
        for name, dataset in opened.items():
            scores = []
            for number in range(seeds):
                seed = student_seed(dataset.header.seed, number)  # The students of the run itself.
                student = new_student(arch, dataset, seed)
                train_student(
                    cfg,
                    student,
                    dataset,
                    kind,
                    seed,
                    device,
                    advance=lambda note: bar.advance(note=note),
                )
                scores.append(evaluate(student, found.val, device))
            top1 = mean_sd([score.top1 for score in scores])
            top5 = mean_sd([score.top5 for score in scores])
            rows.append([name, top1, top5])
    training = cfg.describe(steps_per_epoch(cfg, dataset))
    by = f" trained as in {recipe}" if recipe is not None else ""
    protocol = (
        f"Student {arch}{by}, {kind} labels, {training}; {counted(seeds, 'seed')}, last epoch, "
    )
    protocol += f"{len(found.val.labels)} real images."
    return f"{table(['file', 'top-1 %', 'top-5 %'], rows)}\n\n{protocol}"
