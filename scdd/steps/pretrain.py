"""Step pretrain: pairs to results.json, by pre-training networks and trying them on tasks."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from scdd.bilevel.regressor import trunk_of
from scdd.checkpoint import Checkpoint
from scdd.config.condense_pairs import PretrainConfig
from scdd.datasets import Dataset, ImageSource
from scdd.datasets.pixel_statistics import with_statistics
from scdd.distilled import RepresentationDataset
from scdd.files import write_json
from scdd.progress import Bar
from scdd.seeding import generator
from scdd.stages.finetune import TUNED, finetune
from scdd.stages.pretrain import LINEAR, UNTRAINED, linear_probe, new_network, pretrain
from scdd.steps.context import Context
from scdd.steps.pairs import BASELINE_FILE, FILE, baseline_rows, images_of_backbone
from scdd.training import Accuracy, evaluate

DISTILLED, STORED = "distilled", "distilled, targets stored"
RANDOM, LABELS = "random real", "random real, class labels"


class Lesson(NamedTuple):
    """What networks of an arm learn from."""

    pairs: int
    """Images, every view counted."""
    learn: Callable[[], tuple[Tensor, Tensor]]
    """Gives images [n, 3, S, S] and targets, float [n, d] or classes int64 [n]."""


class Trial(NamedTuple):
    """One way to tell what a pre-trained network is worth on one task."""

    task: int
    """Number of the task: 0 is the images that were distilled, the others are of `transfer`."""
    train: ImageSource
    val: ImageSource
    by: str
    """LINEAR or TUNED."""
    steps: int
    """Of SGD, with checkpoints; 0 for what takes moments."""

    def path(self, network: Path) -> Path:
        """Where the score is kept, beside the others of the same network."""
        return network.with_name(f"{network.name}-{self.task}-{self.by.replace(' ', '-')}.json")


def run_pretrain(context: Context, step: str) -> tuple[str, ...]:
    """Pairs -> results.json: what networks that learnt from each arm are worth on each task."""
    cfg, folder = context.cfg.pretrain, context.run.folder(step)
    assert cfg is not None
    arms, trials = _arms(context), _trials(context)
    plan = [(arm, seed) for seed in range(cfg.seeds) for arm in arms]
    networks = {row: folder / "rows" / f"{list(arms).index(row[0])}-{row[1]}" for row in plan}
    mine = context.world.share(plan)
    work = {
        (arm, seed): _steps(cfg, arms[arm]) + sum(trial.steps for trial in trials)
        for arm, seed in mine
    }
    missing = [
        row for row in mine if not all(trial.path(networks[row]).exists() for trial in trials)
    ]
    done = sum(work[row] for row in mine if row not in missing)
    with Bar(step, sum(work.values()), done) as bar:
        for arm, seed in missing:
            _try_network(context, step, arm, seed, arms[arm], networks[arm, seed], trials, bar)
    context.world.barrier()
    if context.world.leads:
        result = {
            "protocol": cfg.model_dump(exclude={"transfer"}),
            "val_images": len(context.dataset.val.labels),
            "tasks": _described(context),
            "rows": [
                _record(context, trial, json.loads(trial.path(networks[arm, seed]).read_text()))
                for arm in arms
                for seed in range(cfg.seeds)
                for trial in trials
            ],
        }
        write_json(folder / "results.json", result)
    return ("results.json",)


def _steps(cfg: PretrainConfig, lesson: Lesson | None) -> int:
    """Steps of SGD that pre-training a network takes, but for the short one of an epoch."""
    return 0 if lesson is None else cfg.epochs * -(-lesson.pairs // cfg.batch)


def _arms(context: Context) -> dict[str, Lesson | None]:
    """What is learnt from in each row; None: nothing."""

    def pairs(step: str, file: str, stored: bool = False) -> Lesson:
        path = context.run.path / step / file
        return Lesson(
            len(RepresentationDataset.open(path)),
            lambda: RepresentationDataset.open(path, context.device).whole(stored),
        )

    cfg = context.cfg
    assert cfg.pairs_from is not None
    arms: dict[str, Lesson | None] = {DISTILLED: pairs(cfg.pairs_from, FILE)}
    if cfg.condense_pairs is not None and cfg.condense_pairs.approximation:
        arms[STORED] = pairs(cfg.pairs_from, FILE, stored=True)
    arms[RANDOM] = random = pairs("baseline_pairs", BASELINE_FILE)
    arms[LABELS] = Lesson(random.pairs, lambda: _labelled(context))
    arms[UNTRAINED] = None
    return arms


def _labelled(context: Context) -> tuple[Tensor, Tensor]:
    """The images of the baseline with their classes."""
    data = RepresentationDataset.open(
        context.run.path / "baseline_pairs" / BASELINE_FILE, context.device
    )
    train = context.dataset.train
    return data.images(0), train.labels[baseline_rows(context)].to(context.device)


def _trials(context: Context) -> list[Trial]:
    """All scores of a network, task by task; images are normalised as the backbone knows them."""
    cfg, known = context.cfg.pretrain, images_of_backbone(context)
    assert cfg is not None
    trials = []
    for number, data in enumerate(_datasets(context)):
        train, val = (with_statistics(s, known.mean, known.std) for s in (data.train, data.val))
        trials.append(Trial(number, train, val, LINEAR, 0))
        if cfg.finetune is not None:
            trials.append(Trial(number, train, val, TUNED, cfg.finetune.iterations))
    return trials


def _score(
    context: Context,
    trial: Trial,
    trunk: nn.Module,
    seed: int,
    checkpoint: Checkpoint,
    advance: Callable[[str], None],
) -> Accuracy:
    """What the trunk is worth; `checkpoint` and `advance` are for trials of many steps."""
    cfg, device = context.cfg.pretrain, context.device
    assert cfg is not None
    if trial.by == LINEAR:
        return linear_probe(cfg.probe, trunk, trial.train, trial.val, seed, device)
    assert cfg.finetune is not None
    net = finetune(cfg.finetune, trunk, trial.train, seed, device, checkpoint, advance)
    return evaluate(net, trial.val, device)


def _datasets(context: Context) -> tuple[Dataset, ...]:
    """The images of each task."""
    return (context.dataset, *context.transfer)


def _described(context: Context) -> list[dict[str, Any]]:
    """What each task is, for the report."""
    return [
        {
            "name": name,
            "dataset": data.name,
            "classes": len(data.classes),
            "train_images": len(data.train),
            "val_images": len(data.val),
        }
        for name, data in zip(context.cfg.tasks, _datasets(context), strict=True)
    ]


def _record(context: Context, trial: Trial, kept: dict[str, Any]) -> dict[str, Any]:
    """A row of results.json; its task has the name that it has now."""
    return {"task": context.cfg.tasks[trial.task], "by": trial.by, **kept}


def _try_network(
    context: Context,
    step: str,
    arm: str,
    seed: int,
    lesson: Lesson | None,
    network: Path,
    trials: Sequence[Trial],
    bar: Bar,
) -> None:
    """Pre-train one network, once for all trials, and write what each says of it."""
    cfg, size, device = context.cfg.pretrain, context.dataset.image_size, context.device
    assert cfg is not None
    own = generator(context.cfg.seed, "pretrain.network", seed).initial_seed()
    about, checkpoint = f"{arm}, seed {seed}", context.checkpoint(step, network.name)
    before = bar.done
    if lesson is None:
        net = new_network(cfg.arch, size, 1, own).to(device)
    else:
        images, targets = lesson.learn()
        each = _steps(cfg, lesson) // cfg.epochs
        net = pretrain(
            cfg,
            images,
            targets,
            own,
            device,
            checkpoint,
            lambda note: bar.advance(each, f"{about}, {note}"),
            len(context.dataset.classes) if arm == LABELS else 0,
        )
    bar.done = before + _steps(cfg, lesson)
    for trial in trials:
        before, path = bar.done, trial.path(network)
        if not path.exists():
            state = context.checkpoint(step, path.stem)
            score = _score(
                context,
                trial,
                trunk_of(net),
                own,
                state,
                lambda note: bar.advance(note=f"{about}, {note}"),
            )
            pairs = 0 if lesson is None else lesson.pairs
            record = {"arm": arm, "seed": seed, "pairs": pairs, **score._asdict()}
            context.run.log(step, **_record(context, trial, record))
            write_json(path, record)
            state.remove()
        bar.done = before + trial.steps
    checkpoint.remove()
