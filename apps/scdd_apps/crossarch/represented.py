"""A file of representations: networks of each architecture learn them and are tried on real images.

As KRR-ST (arXiv:2310.06511) and Boost (arXiv:2507.21455) compare files: regression, then a linear
probe, or fine-tuning, beside networks that learnt from random real images or from nothing.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scdd import __version__
from scdd.augment import normalise
from scdd.bilevel.pairs import start_rows
from scdd.bilevel.regressor import trunk_of
from scdd.checkpoint import Checkpoint
from scdd.config.condense_pairs import PretrainConfig
from scdd.config.finetune import FinetuneConfig
from scdd.config.load import pretrain_config
from scdd.distilled import RepresentationDataset
from scdd.errors import ConfigError
from scdd.progress import Bar
from scdd.seeding import generator
from scdd.stages.finetune import TUNED, finetune
from scdd.stages.pretrain import LINEAR, UNTRAINED, linear_probe, new_network, pretrain
from scdd.tables import counted
from scdd.training import evaluate
from scdd_apps.crossarch.compared import Compared, Forecast, Row
from scdd_apps.crossarch.options import Options, Tuning, tuning_of
from scdd_apps.crossarch.published import table_of_boost
from scdd_apps.crossarch.rates import fitting_rate
from scdd_apps.crossarch.recipes import built
from scdd_apps.files import Inputs, check_overrides
from scdd_apps.report import macs_line
from scdd_apps.report_cost import macs, parameters, regression_seconds

DEFAULT_ARCHS = ("convnet_krr", "vgg11", "resnet18", "alexnet", "mobilenet", "vit_tiny")
"""Those of Boost's table: ConvNet, VGG-11, ResNet-18, AlexNet, MobileNet, ViT."""
MEASURED = ("top1", "top5", "parameters", "macs", "stem", "steps", "seconds", "pairs")
RANDOM = "random real"
LABELS = f"{RANDOM}, class labels"
NO_BASELINE, NO_CLASSES = "n/a (no random_real.h5)", "n/a (no classes)"
SAME_PIXEL = 1e-2
"""Of normalised images, beyond what storing them changes."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """What networks of an arm learn from."""

    images: Tensor
    """[n, 3, S, S], normalised."""
    targets: Tensor
    """float [n, d], or classes int64 [n]."""
    classes: int = 0
    """How many, where the targets are classes."""

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Pupil:
    """One network to pre-train, or to leave as it is, and then to try on real images."""

    arm: str
    arch: str
    seed: int
    cfg: PretrainConfig

    @property
    def kinds(self) -> tuple[str, ...]:
        """The scores that it gets."""
        return (LINEAR,) if self.cfg.finetune is None else (LINEAR, TUNED)

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that decide the trained network and its scores."""
        return self.cfg.model_dump(mode="json", exclude={"seeds", "transfer"})


def compared_pupils(inputs: Inputs, options: Options, device: torch.device) -> Compared[Pupil]:
    """All networks that `options` ask for, and those that they are to be compared with.

    Raises:
        UserError: if an option or a file cannot be used, or there are no real images.
    """
    cfg = _settings(inputs, options)
    if inputs.train is None or inputs.val is None:
        raise ConfigError(
            f"{inputs.file}: holds representations, and there are no real images to probe networks "
            "on; give --data DIR with train/ and val/"
        )
    archs, tuning = options.archs_or(DEFAULT_ARCHS), tuning_of(options.tuning)
    for arch in archs:
        built(arch, inputs)  # What is no name at all is refused here.
    arms, lessons = _arms(inputs, device)
    own = next(lesson for lesson in lessons.values() if lesson is not None)
    tuned = tuning == "per-arch" and not any(o.startswith("lr=") for o in options.overrides)
    cfgs = {arch: cfg.model_copy(update={"arch": arch}) for arch in archs}
    cfgs = {arch: _at_fitting_rate(c, own) if tuned else c for arch, c in cfgs.items()}
    pupils = [
        Pupil(arm, arch, seed, cfgs[arch])
        for arch in archs
        for seed in range(options.seeds)
        for arm in lessons
    ]
    return Compared(
        learners=pupils,
        tuning=tuning,
        kinds=pupils[0].kinds,
        arms=arms,
        learnt_from="learnt from",
        measured=MEASURED,
        key=partial(_key, inputs),
        units=lambda pupil: sum(_steps(pupil, lessons[pupil.arm])),
        forecast=partial(_forecast, inputs, lessons),
        train=partial(_train, inputs, lessons, device),
        notes=partial(_notes, inputs, cfg, cfgs, lessons, options.seeds, tuning),
        published=table_of_boost(inputs.header),
    )


def _settings(inputs: Inputs, options: Options) -> PretrainConfig:
    """How all networks are pre-trained: as the run does it, but for what the user changes."""
    if options.labels:
        raise ConfigError(
            f"--labels {options.labels[0]}: {inputs.file} holds representations in place of "
            "labels; leave it out"
        )
    check_overrides(options.overrides, unused=("transfer",))
    for override in options.overrides:
        if override.startswith("finetune") and not options.finetune:
            raise ConfigError(f"--set {override}: has no effect without --finetune; add it")
    base = inputs.pretraining or PretrainConfig()
    if not options.finetune:
        base = base.model_copy(update={"finetune": None})
    elif base.finetune is None:
        base = base.model_copy(update={"finetune": FinetuneConfig()})
    given = [] if options.epochs is None else [f"epochs={options.epochs}"]
    return pretrain_config(base, [*options.overrides, *given], inputs.header.image_size)


def _at_fitting_rate(cfg: PretrainConfig, lesson: Lesson) -> PretrainConfig:
    """The settings at a rate at which this architecture learns; as they are if it cannot be."""
    images, targets = (part[: cfg.batch] for part in (lesson.images, lesson.targets))
    try:
        net = new_network(cfg.arch, images.shape[-1], targets.shape[1], 0).to(images.device)
        return cfg.model_copy(update={"lr": fitting_rate(net, images, cfg.momentum, cfg.lr)})
    except Exception:
        return cfg  # Which its row will say.


def _arms(inputs: Inputs, device: torch.device) -> tuple[dict[str, str], dict[str, Lesson | None]]:
    """All rows, each with why it is empty if it is, and what is learnt from in the others."""
    lessons: dict[str, Lesson | None] = {}
    for arm, path in inputs.arms.items():
        lessons[arm] = Lesson(*RepresentationDataset.open(path, device).whole())
    arms = dict.fromkeys(lessons, "") | ({} if RANDOM in lessons else {RANDOM: NO_BASELINE})
    labelled = _labelled(inputs, device)
    if labelled is not None:
        lessons[LABELS] = labelled
    arms[LABELS] = "" if labelled is not None else arms[RANDOM] or NO_CLASSES
    lessons[UNTRAINED] = None
    return arms | {UNTRAINED: ""}, lessons


def _labelled(inputs: Inputs, device: torch.device) -> Lesson | None:
    """The random real images with their classes, if they are those of the run that is at hand."""
    path = inputs.arms.get(RANDOM)
    if path is None or inputs.source is None:
        return None
    data, source = RepresentationDataset.open(path, device), inputs.source
    if len(data.parts) > len(source):
        return None
    rows, images = start_rows(source, len(data.parts), data.header.seed), data.images(0)
    real = normalise(source.read(rows).to(device).float() / 255, source.mean, source.std)
    if (real - images).abs().max() > SAME_PIXEL:
        return None
    return Lesson(images, source.labels[rows].to(device), len(source.classes))


def _steps(pupil: Pupil, lesson: Lesson | None) -> tuple[int, int]:
    """Steps of SGD that pre-training and fine-tuning take."""
    cfg = pupil.cfg
    learning = 0 if lesson is None else cfg.epochs * -(-len(lesson) // cfg.batch)
    return learning, 0 if cfg.finetune is None else cfg.finetune.iterations


def _forecast(
    inputs: Inputs, lessons: Mapping[str, Lesson | None], own: Sequence[Pupil]
) -> Forecast:
    """Time one step, from which all else follows by the number of images."""
    assert inputs.train is not None and inputs.val is not None
    cfg = own[0].cfg
    lesson = next(lesson for lesson in lessons.values() if lesson is not None)
    net = new_network(own[0].arch, inputs.header.image_size, lesson.targets.shape[1], 0)
    batch = min(cfg.batch, len(lesson))
    an_image = regression_seconds(net, lesson.images[:batch], lesson.targets[:batch]) / batch
    learnt = sum(len(lessons[pupil.arm] or ()) for pupil in own) * cfg.epochs
    tuned = 0
    if cfg.finetune is not None:
        tuned = cfg.finetune.iterations * min(cfg.finetune.batch, len(inputs.train))
    probed = (len(inputs.train) + len(inputs.val)) / 3  # A forward pass, of what are three.
    seconds = an_image * (learnt + len(own) * (tuned + probed))
    return Forecast(parameters(trunk_of(net)), cfg.describe(), seconds)


def _train(
    inputs: Inputs,
    lessons: Mapping[str, Lesson | None],
    device: torch.device,
    pupil: Pupil,
    checkpoint: Checkpoint,
    bar: Bar,
) -> Row:
    """Pre-train one network, once, and score it in every way."""
    train, val = inputs.train, inputs.val
    assert train is not None and val is not None and checkpoint.path is not None
    started, cfg, lesson = time.monotonic(), pupil.cfg, lessons[pupil.arm]
    size = inputs.header.image_size
    # The networks of the run itself.
    seed = generator(inputs.header.seed, "pretrain.network", pupil.seed).initial_seed()
    about, before = f"{pupil.arch}, {pupil.arm}", bar.done
    learning, _ = _steps(pupil, lesson)
    if lesson is None:
        net = new_network(cfg.arch, size, 1, seed).to(device)
    else:
        net = pretrain(
            cfg,
            lesson.images,
            lesson.targets,
            seed,
            device,
            checkpoint,
            lambda note: bar.advance(learning // cfg.epochs, about),
            lesson.classes,
        )
    bar.done, trunk = before + learning, trunk_of(net)
    scores = {LINEAR: linear_probe(cfg.probe, trunk, train, val, seed, device)._asdict()}
    if cfg.finetune is not None:
        state = Checkpoint(checkpoint.path.with_suffix(".tuned.pt"), checkpoint.seconds / 60)
        tuned = finetune(
            cfg.finetune,
            trunk,
            train,
            seed,
            device,
            state,
            lambda note: bar.advance(note=f"{about}, {note}"),
        )
        scores[TUNED] = evaluate(tuned, val, device)._asdict()
        state.remove()
    return {
        "arm": pupil.arm,
        "arch": pupil.arch,
        "seed": pupil.seed,
        "scores": scores,
        "parameters": parameters(trunk),
        "macs": macs(trunk, size),
        "stem": trunk.stem,
        "steps": learning,
        "seconds": round(time.monotonic() - started, 1),
        "pairs": len(lesson or ()),
        "training": pupil.identity,
    }


def _key(inputs: Inputs, pupil: Pupil) -> dict[str, Any]:
    of_baseline = pupil.arm in (inputs.baseline_arm, LABELS)
    header = inputs.baseline_header if of_baseline else inputs.header
    return {
        "app": "crossarch",
        "scdd": __version__,
        "file": (header or inputs.header).digest,
        "scored_on": inputs.val_digest,
        "probed_on": inputs.train_digest,
        "arch": pupil.arch,
        "arm": pupil.arm,
        "seed": pupil.seed,
        "training": pupil.identity,
    }


def _notes(
    inputs: Inputs,
    cfg: PretrainConfig,
    cfgs: Mapping[str, PretrainConfig],
    lessons: Mapping[str, Lesson | None],
    seeds: int,
    tuning: Tuning,
    rows: Mapping[Pupil, Row],
) -> list[str]:
    """What the numbers and the rows are, how networks learnt, how they differ from stock."""
    assert inputs.train is not None and inputs.val is not None
    header, trained = inputs.header, counted(seeds, "seed") + (", mean and sd" if seeds > 1 else "")
    tried = "probed" if cfg.finetune is None else "probed and fine-tuned"
    stems = {pupil.arch: row["stem"] for pupil, row in rows.items()}
    remarks = {
        RANDOM: "real images with representations of the same backbone",
        LABELS: "the same images with their classes, learnt by cross-entropy",
        UNTRAINED: "networks as they were initialised"
        + ("" if cfg.finetune is None else "; fine-tuning them is training from scratch"),
    }
    return [
        f"Top-1 % on {len(inputs.val)} real validation images, {tried} on {len(inputs.train)} real "
        f"training images, {trained}. Recipe {header.recipe}, method {header.method}, "
        f"{header.count} images of {header.image_size} px, {header.target_dim} numbers a target.",
        macs_line(header.image_size),
        "",
        f"Tuning {tuning}, one training for every architecture"
        f"{' but for the rate' if tuning == 'per-arch' else ''}: {cfg.describe()}.",
        "",
        *(f"- {arm}: {remarks[arm]}" for arm in lessons if arm in remarks),
        *_nets(cfg, cfgs, stems),
    ]


def _nets(
    cfg: PretrainConfig, cfgs: Mapping[str, PretrainConfig], stems: Mapping[str, str]
) -> list[str]:
    """What is special about each architecture."""
    lines = []
    for arch, own in cfgs.items():
        lower = f"lr {own.lr:g}, as its head would diverge at {cfg.lr:g}"
        facts = ([lower] if own.lr < cfg.lr else []) + (
            [f"net: {stems[arch]}"] if arch in stems else []
        )
        lines += [f"- {arch}: {'; '.join(facts)}"] if facts else []
    return lines
