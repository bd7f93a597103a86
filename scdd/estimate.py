"""What a run will cost: steps, FLOPs, disk, memory and a rough time, before anything is run."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scdd.config.run import RunConfig
from scdd.config.squeeze import SqueezeConfig
from scdd.config.stem import Stem
from scdd.datasets import Dataset, load_dataset
from scdd.device import uses_bf16
from scdd.distilled import codec_of, label_sizes
from scdd.distilled.bill import storage_floats
from scdd.foreign import Loaded
from scdd.method_steps import steps_of
from scdd.models import create_model, has_choice_of_stem
from scdd.models.stems import stem_of
from scdd.progress import duration
from scdd.stages.probe import shards_of
from scdd.stages.squeeze import check_squeeze
from scdd.steps import PairPlan, check_later_steps, load_instead, plan_pairs
from scdd.tables import size, table

PROBE_SECONDS = 1.0
LABELLING = ("relabel", "relabel_real", "baseline")
PASSES = {"forward": 1, "input gradient": 2, "training": 3}


@dataclass(frozen=True)
class Cost:
    """One step: images through which network, and in which way."""

    step: str
    arch: str
    stem: Stem | None
    num_classes: int
    images: int
    passes: str
    batch: int
    disk: float = 0.0
    bf16: bool = False


class Work(NamedTuple):
    """What a step computes, whatever on."""

    flops: float
    batches: float


def estimate(cfg: RunConfig, device: torch.device) -> str:
    """Return a table of the steps of `cfg`; the time comes from a short run of each network.

    Raises:
        UserError: if the data is missing, as its size decides most of the cost, or cannot serve.
    """
    dataset = load_dataset(cfg.dataset)
    check_later_steps(cfg, dataset)
    classes, train = len(dataset.classes), len(dataset.train)
    other = load_dataset(cfg.squeeze_dataset) if cfg.squeeze_dataset else dataset
    taken = _taken(cfg, dataset, other)
    tasks = [dataset, *(load_dataset(section) for section in cfg.transfer.values())]
    sizes = [(len(task.train), len(task.val)) for task in tasks]
    costs = _costs(cfg, taken, classes, len(other.train), train, sizes, device)
    rows = []
    total_seconds = total_disk = total_flops = 0.0
    for step in steps_of(cfg):
        own = [cost for cost in costs if cost.step == step.name]
        if not own:
            rows.append([step.name, "", "", "", "moments"])
        for cost in own:
            flops, rate = _measure(cost, cfg.dataset.image_size, device)
            seconds = cost.images / rate
            total_seconds += seconds
            total_disk += cost.disk
            total_flops += flops * cost.images
            rows.append(
                [
                    step.name,
                    f"{cost.images:.3g} x {cost.arch}",
                    f"{flops * cost.images:.2g}",
                    size(cost.disk),
                    duration(seconds),
                ]
            )
    rows.append(["all", "", f"{total_flops:.2g}", size(total_disk), duration(total_seconds)])
    reports = [
        "\n".join([f"{key}.checkpoint", *(f"  {fact}" for fact in loaded.report.lines()), ""])
        for key, loaded in taken.items()
    ]
    return "\n".join(
        [
            f"{cfg.method} on {cfg.dataset.name}: {train} training images of "
            f"{cfg.dataset.image_size} px, {classes} classes, {_how_many(cfg)}",
            "",
            table(["step", "images x network", "FLOPs", "disk", f"time on {device}"], rows),
            "",
            *reports,
            f"Memory: {_resident(cfg, tasks, other)}; each network adds its activations.",
            "Times are rough: each network was timed for a second at the step's batch size.",
        ]
    )


def work_of(cfg: RunConfig, images: int, classes: int) -> dict[str, Work]:
    """What the steps of `cfg` compute on so many training images; steps of moments are left out.

    Backbones are taken to be trained here, none to come from a file, and all tasks to be as large
    as the images.
    """
    found: dict[str, Work] = {}
    size, device = cfg.dataset.image_size, torch.device("cpu")
    tasks = [(images, 0)] * len(cfg.tasks)
    for cost in _costs(cfg, {}, classes, images, images, tasks, device):
        before = found.get(cost.step, Work(0.0, 0.0))
        flops = _forward_flops(cost.arch, cost.num_classes, cost.stem, size)
        flops *= PASSES[cost.passes]
        batches = cost.images / max(1, cost.batch)
        found[cost.step] = Work(before.flops + flops * cost.images, before.batches + batches)
    return found


def _how_many(cfg: RunConfig) -> str:
    pairs = cfg.condense_pairs
    return f"ipc {cfg.ipc}" if pairs is None else f"a budget of {pairs.budget_n} images"


def _taken(cfg: RunConfig, dataset: Dataset, other: Dataset) -> dict[str, Loaded]:
    """Backbones that come from files, by the key of their section; what is trained can be."""
    found = {}
    for key, section in cfg.squeezes.items():
        images, data = cfg.dataset, dataset
        if key == "squeeze" and cfg.squeeze_dataset is not None:
            images, data = cfg.squeeze_dataset, other
        if section.checkpoint is None:
            check_squeeze(section, data.train, key)
        else:
            found[key] = load_instead(section, section.checkpoint, images, data)
    return found


def _resident(cfg: RunConfig, tasks: Sequence[Dataset], other: Dataset) -> str:
    """How much memory the images take, in words."""
    seen = list(zip(tasks, (cfg.dataset, *cfg.transfer.values()), strict=True))
    if cfg.squeeze_dataset:
        seen.append((other, cfg.squeeze_dataset))
    kept = [data for data, section in seen if section.storage == "resident"]
    if not kept:
        return "images are streamed, none stays resident"
    images = sum(len(data.train) + len(data.val) for data in kept)
    return f"{size(images * 3 * cfg.dataset.image_size**2)} of images stay resident"


def _costs(
    cfg: RunConfig,
    taken: Mapping[str, Loaded],
    classes: int,
    squeezed: int,
    train: int,
    tasks: Sequence[tuple[int, int]],
    device: torch.device,
) -> list[Cost]:
    """`taken` are the backbones of files, `squeezed` and `train` are numbers of images.

    `tasks` are numbers of training and validation images that pre-trained networks are tried on.
    """
    whole = cfg.dataset.image_size
    stems = {key: _stem(section, taken.get(key)) for key, section in cfg.squeezes.items()}
    plan = None if cfg.pairs_from is None else plan_pairs(cfg, train, classes)
    rows = classes * cfg.ipc if plan is None else plan.sizes.pairs
    picture = 3.0 * rows * cfg.dataset.image_size**2
    costs = [
        *_squeezes("squeeze", [cfg.squeeze], squeezed, whole, device),
        *_squeezes("squeeze_labellers", cfg.squeeze_labellers, train, whole, device),
        *_probes(cfg, taken, stems, train),
        *_selections(cfg, stems, train, picture, device),
        *_condensation(cfg, classes, train, picture),
        *_recoveries(cfg, stems, classes, picture),
        *_labellings(cfg, stems, classes, rows, picture),
        *_students(cfg, classes, rows, device),
    ]
    if plan is not None:
        costs += _pairs(cfg, stems["squeeze"], plan, tasks)
    # A method has some of these steps.
    steps = {step.name for step in steps_of(cfg)}
    return [cost for cost in costs if cost.step in steps]


def _squeezes(
    step: str, sections: Sequence[SqueezeConfig], images: int, whole: int, device: torch.device
) -> Iterator[Cost]:
    """One cost for each network that is trained; smaller views cost as their area."""
    for cfg in sections:
        if cfg.checkpoint is None:
            areas = [((side or whole) / whole) ** 2 for side in cfg.view_sizes]
            passes = round(cfg.epochs * images * cfg.objective.training_passes(areas))
            yield Cost(
                step,
                cfg.arch,
                cfg.stem,
                0,
                passes,
                "training",
                cfg.batch,
                bf16=uses_bf16(cfg.precision, device),
            )


def _probes(
    cfg: RunConfig, taken: Mapping[str, Loaded], stems: Mapping[str, Stem | None], train: int
) -> Iterator[Cost]:
    """One cost for each backbone; a labeller that has a classifier keeps it."""
    stored = sum(shard.last - shard.first for shard in shards_of(cfg.probe, train))
    once = stored + round(train * cfg.probe.epochs_over_train)
    for key, section in cfg.squeezes.items():
        net = create_model(section.arch, 0, cfg.dataset.image_size, stems[key])
        disk = 4.0 * stored * int(net.feature_dim)  # type: ignore[arg-type]
        if key == "squeeze":
            yield Cost("probe", section.arch, stems[key], 0, once, "forward", 500, disk)
        elif not _brings_classifier(section, taken.get(key)):
            images = once * (1 + len(section.keep_epochs))
            yield Cost("probe_labellers", section.arch, stems[key], 0, images, "forward", 500, disk)


def _brings_classifier(section: SqueezeConfig, taken: Loaded | None) -> bool:
    return section.objective.name == "supervised" if taken is None else taken.head is not None


def _selections(
    cfg: RunConfig,
    stems: Mapping[str, Stem | None],
    train: int,
    picture: float,
    device: torch.device,
) -> Iterator[Cost]:
    """What real images are chosen by: features, or a training that counts what is forgotten."""
    if cfg.scorer is not None:
        yield from _squeezes("squeeze_scorer", [cfg.scorer], train, cfg.dataset.image_size, device)
    if cfg.method in ("herding", "k_center"):
        yield Cost("select", cfg.squeeze.arch, stems["squeeze"], 0, train, "forward", 500, picture)


def _condensation(cfg: RunConfig, classes: int, train: int, picture: float) -> Iterator[Cost]:
    """Real images are embedded, at most all there are; for synthetic ones there is a way back."""
    section = cfg.condense
    if section is not None:
        real = section.iterations * min(classes * section.batch, train)
        ours = section.iterations * classes * cfg.ipc
        yield Cost("condense", section.arch, None, 0, real, "forward", section.batch)
        yield Cost("condense", section.arch, None, 0, ours, "input gradient", cfg.ipc, picture)


def _students(cfg: RunConfig, classes: int, rows: int, device: torch.device) -> Iterator[Cost]:
    """All students of all arms together."""
    after, arms = cfg.posttrain, {step.name for step in steps_of(cfg)} & set(LABELLING)
    images = len(arms) * len(after.labels) * after.seeds * after.epochs * rows
    bf16 = uses_bf16(after.precision, device)
    yield Cost(
        "posttrain", after.arch, None, classes, images, "training", after.micro_batch, bf16=bf16
    )


def _pairs(
    cfg: RunConfig, stem: Stem | None, plan: PairPlan, tasks: Sequence[tuple[int, int]]
) -> Iterator[Cost]:
    """Real images pass teacher and model; pairs pass the model, and train it; then it is tried."""
    section, after, sizes = cfg.condense_pairs, cfg.pretrain, plan.sizes
    turned = section or cfg.represent
    assert turned is not None
    shown, disk = len(turned.turns) * sizes.pairs, 4.0 * storage_floats(sizes)
    if section is not None:
        steps, pool = section.steps, section.pool
        aged = steps + pool.models * pool.age // 2
        for arch, of, images, passes in (
            (cfg.squeeze.arch, stem, steps * section.batch, "forward"),
            (pool.arch, None, steps * section.batch, "forward"),
            (pool.arch, None, steps * shown, "input gradient"),
            (pool.arch, None, aged * shown, "training"),
        ):
            own = disk if passes == "training" else 0.0
            yield Cost("condense_pairs", arch, of, 0, images, passes, section.batch, own)
    else:
        yield Cost("represent", cfg.squeeze.arch, stem, 0, shown, "forward", 500, disk)
    if after is not None:
        twice = section is not None and section.approximation
        learnt = shown * (2 if twice else 1) + 2 * plan.budget_n
        images = after.seeds * after.epochs * learnt
        yield Cost("pretrain", after.arch, None, 0, images, "training", after.batch)
        networks = after.seeds * (5 if twice else 4)
        probed = networks * sum(train + val for train, val in tasks)
        yield Cost("pretrain", after.arch, None, 0, probed, "forward", 500)
        if after.finetune is not None:
            seen = sum(min(after.finetune.batch, train) for train, _ in tasks)
            images = networks * after.finetune.iterations * seen
            yield Cost("pretrain", after.arch, None, 0, images, "training", after.finetune.batch)


def _recoveries(
    cfg: RunConfig, stems: Mapping[str, Stem | None], classes: int, picture: float
) -> Iterator[Cost]:
    """One cost for each teacher: of the iterations that are its turn."""
    for step, section in cfg.recoveries.items():
        teachers = cfg.teachers_of(step)
        for turn, (key, network) in enumerate(teachers.items()):
            iterations = len(range(turn, section.iterations, len(teachers)))
            yield Cost(
                step,
                network.arch,
                stems[key],
                classes,
                classes * cfg.ipc * iterations,
                "input gradient",
                section.batch,
                picture if turn == 0 else 0.0,
            )


def _labellings(
    cfg: RunConfig, stems: Mapping[str, Stem | None], classes: int, rows: int, picture: float
) -> Iterator[Cost]:
    """One cost for each network that labels, of every arm; nobody labels what is not stored."""
    codec = codec_of(cfg.relabel, classes)
    labelled = rows * cfg.relabel.views if codec is not None and codec.layout else 0
    disk = picture + sum(label_sizes(cfg.relabel, rows, cfg.dataset.image_size, classes))
    for step in LABELLING:
        for number, (key, network) in enumerate(cfg.teachers_of(step).items()):
            yield Cost(
                step,
                network.arch,
                stems[key],
                classes,
                labelled,
                "forward",
                500,
                disk if number == 0 else 0.0,
            )


def _stem(section: SqueezeConfig, taken: Loaded | None) -> Stem | None:
    """As it will be; weights that are taken from a file have one."""
    if taken is None or not has_choice_of_stem(section.arch):
        return section.stem
    return stem_of(taken.backbone)


def _measure(cost: Cost, image_size: int, device: torch.device) -> tuple[float, float]:
    """FLOPs an image, and images a second, of one network in one kind of pass."""
    net = create_model(cost.arch, cost.num_classes, image_size, cost.stem).to(device)
    net.train(cost.passes == "training").requires_grad_(cost.passes == "training")
    batch = min(cost.batch, 64)
    x = torch.randn(batch, 3, image_size, image_size, device=device)
    x.requires_grad_(cost.passes == "input gradient")
    rate = batch * _repetitions_a_second(lambda: _pass(net, x, cost), device)
    flops = _forward_flops(cost.arch, cost.num_classes, cost.stem, image_size)
    return flops * PASSES[cost.passes], rate


@cache
def _forward_flops(arch: str, classes: int, stem: Stem | None, image_size: int) -> float:
    """Of one image."""
    net = create_model(arch, classes, image_size, stem).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net(torch.zeros(1, 3, image_size, image_size))
    return float(counter.get_total_flops())


def _pass(net: nn.Module, x: torch.Tensor, cost: Cost) -> None:
    with torch.set_grad_enabled(cost.passes != "forward"):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=cost.bf16):
            out = net(x)
        if cost.passes != "forward":
            out.float().square().mean().backward()


def _repetitions_a_second(work: Callable[[], None], device: torch.device) -> float:
    work()
    started, count = time.monotonic(), 0
    while time.monotonic() - started < PROBE_SECONDS:
        work()
        count += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return count / (time.monotonic() - started)
