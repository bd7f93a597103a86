"""Measure how many images an iteration of recovery gets through a second, and against what.

    python benchmarks/recover_throughput.py [--archs resnet18 resnet50 resnet101]
        [--sizes 32 64 224] [--device auto] [--threads N] [--batch N] [--group N]
        [--precision auto] [--rounds 5] [--seconds 10] [--no-compile] [--result FILE]

Three ways to recover with one teacher take turns in one process: a reference loop, and the
product's loop with the loss as it is and compiled. Nothing else should run all the same. The
teacher is random, but its BatchNorm layers have the statistics of its inputs.
"""

import argparse
import ctypes
import gc
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

# Threads that spin while they wait would slow down whatever else there is.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from record import commit, without_folder  # noqa: E402
from reference_recovery import MEAN, STD, reference, reference_losses, watched  # noqa: E402
from roofline import by_kind, ceilings, flops_of, values_of, wait  # noqa: E402
from tables_of_measurements import recover_table  # noqa: E402

from scdd.config.recover import RecoverConfig  # noqa: E402
from scdd.device import resolve_device, uses_bf16  # noqa: E402
from scdd.files import write_json  # noqa: E402
from scdd.models import create_model  # noqa: E402
from scdd.progress import say  # noqa: E402
from scdd.recovery import RecoveryLoss  # noqa: E402
from scdd.recovery.speed import batches_a_second, compiled, fastest_group  # noqa: E402
from scdd.run import PeakMemory, environment  # noqa: E402
from scdd.seeding import seeded  # noqa: E402
from scdd.stages.recover import Batch, LossFunction, recover  # noqa: E402

SCHEMA = "scdd recover throughput 1"
SMALL, LARGE = (100, 100), (50, 1000)
"""Images of a batch and classes in the paper, below 224 px and from there on."""
PAPER_HOURS = {"resnet18": 7.78, "resnet50": 25.04, "resnet101": 35.44}
"""Table 11 of SC-DD (arXiv:2404.07976), at 224 px on one RTX 4090."""
PAPER_WORK = 50_000 * 1000
"""Images times iterations of that table: ImageNet-1K, ipc 50."""
WARM_UP = {"cuda": 3, "cpu": 1}
"""Uncounted iterations of every run, by kind of device: a CUDA graph is recorded in the second."""
TRIAL = 2
"""Counted iterations of the first run, which tells how many a round takes."""
PASSES, PASS_BATCH = 3, 16
"""What fills the statistics of the teacher."""
Advance = Callable[[str], None]
Loop = Callable[[int, Advance], object]
"""So many iterations, telling after each."""


class Case(NamedTuple):
    """What is measured in a row."""

    cfg: RecoverConfig
    teacher: nn.Module
    labels: Tensor
    """int64 [B], on the device."""
    size: int
    device: torch.device
    bf16: bool


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each net at each size; write what there is after each, and print it at the end."""
    options = parse(arguments)
    device = resolve_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    about = environment(str(device), torch.get_num_threads())
    about["command"] = shlex.join(map(without_folder, sys.argv))
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    bf16 = uses_bf16(options.precision, device)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "commit": options.commit or commit(),
        "environment": about,
        "n": options.rounds,
        "config": {
            "seconds": options.seconds,
            "precision": {"reference": "fp32", "ours": "bf16" if bf16 else "fp32"},
            "tf32_convolutions": device.type == "cuda" and torch.backends.cudnn.allow_tf32,
        },
        "rows": [],
    }
    # A cache that an earlier run has filled would make compiling look fast.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        if not options.no_compile:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for arch in options.archs:
            for size in options.sizes:
                result["rows"].append(measure_case(arch, size, options, device, bf16))
                if options.result:
                    write_json(options.result, result)
    print(recover_table(result))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", nargs="+", default=list(PAPER_HOURS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 224])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="of the CPU; default: torch's choice")
    parser.add_argument("--batch", type=int, help="default: the paper's, 100, and 50 from 224 px")
    parser.add_argument("--group", type=int, help="batches in one pass; default: as recover does")
    parser.add_argument("--batches", type=int, default=50, help="bound of a group that is chosen")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10, help="of each way in each round")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--commit", help="for a copy of the files without their git repository")
    parser.add_argument("--result", type=Path)
    return parser.parse_args(arguments)


def measure_case(
    arch: str, size: int, options: argparse.Namespace, device: torch.device, bf16: bool
) -> dict[str, Any]:
    """One row of the result; with a smaller group where the memory does not last for all ways."""
    batch, classes = LARGE if size >= 224 else SMALL
    batch = options.batch or batch
    cfg = RecoverConfig(batch=batch, roll=size // 8, precision=options.precision, compile="on")
    labels = torch.arange(batch, device=device) % classes
    case = Case(cfg, make_teacher(arch, classes, size, device), labels, size, device, bf16)
    group = options.group or 1
    if options.group is None and device.type == "cuda":
        group = fastest_group(partial(group_rate, case), options.batches)
    while True:
        say(f"{arch}, {size} px, batch {batch}, group {group}")
        try:
            measured = measure(case, group, options)
            break
        except torch.OutOfMemoryError:
            if group == 1:
                raise
        group //= 2
    row = {"arch": arch, "image_size": size, "batch": batch, "group": group, **measured}
    row["config"] = cfg.model_dump(mode="json")
    row["hours"] = row["paper_hours"] = None
    if size == 224 and arch in PAPER_HOURS:
        row["hours"] = {
            name: PAPER_WORK / way["median"] / 3600 for name, way in row["ways"].items()
        }
        row["paper_hours"] = PAPER_HOURS[arch]
    return row


def group_rate(case: Case, group: int) -> float:
    """Batches a second, as the product tries it out."""
    count = len(case.labels)
    return batches_a_second(
        case.cfg, [case.teacher], group, count, case.size, case.device, case.bf16
    )


def make_teacher(arch: str, classes: int, size: int, device: torch.device) -> nn.Module:
    """A net with random weights, whose BatchNorm has seen a few batches of noise."""
    with seeded(0, "teacher"):
        net = create_model(arch, classes, size).to(device).train()
        with torch.no_grad():
            for _ in range(PASSES):
                net(torch.randn(PASS_BATCH, 3, size, size).to(device))
    return net.eval().requires_grad_(False)


def measure(case: Case, group: int, options: argparse.Namespace) -> dict[str, Any]:
    """Make the ways to recover, run each for a moment, then let them take turns."""
    # torch.compile makes no more than eight versions of a function, and keeps the memory of each.
    torch.compiler.reset()
    # Imports the compiler, whose memory would otherwise be that of the first way which needs it.
    torch.compiler.cudagraph_mark_step_begin()
    precision = torch.bfloat16 if case.bf16 else torch.float32
    makers: dict[str, Callable[[], Loop]] = {
        "reference": lambda: partial(
            reference, case.cfg, case.labels, case.size, *watched(case.teacher)
        ),
        "eager": lambda: partial(ours, case, group, make_loss(case, group, fast=False)),
    }
    if not options.no_compile:
        makers["compiled"] = lambda: partial(ours, case, group, make_loss(case, group, fast=True))
    difference = check(case)
    loops: dict[str, Loop] = {}
    ways: dict[str, dict[str, Any]] = {}
    for name, make in makers.items():
        peak, started = peak_memory(case.device), time.perf_counter()
        loops[name] = make()
        making = time.perf_counter() - started
        seconds = timed(loops[name], TRIAL, case.device) / TRIAL
        ways[name] = {
            "images": len(case.labels) * (1 if name == "reference" else group),
            "iterations": max(1, round(options.seconds / seconds)),
            "making_seconds": making,
            "peak_bytes": peak(),
            "images_per_second": [],
        }
        say(f"  {name}: {seconds:.3g} s an iteration")
    best: dict[torch.dtype, tuple[float, float]] = {}
    for _ in range(options.rounds):
        for name, way in ways.items():
            seconds = timed(loops[name], way["iterations"], case.device)
            way["images_per_second"].append(way["images"] * way["iterations"] / seconds)
        for dtype in {torch.float32, precision}:
            found = ceilings(case.device, dtype, options.seconds / 20)
            before = best.get(dtype, found)
            best[dtype] = max(found[0], before[0]), max(found[1], before[1])
    flops, values = flops_of(case.teacher, case.size), values_of(case.teacher, case.size)
    for name, way in ways.items():
        dtype = torch.float32 if name == "reference" else precision
        rates = way["images_per_second"]
        way["median"] = statistics.median(rates)
        pairs = zip(rates, ways["reference"]["images_per_second"], strict=True)
        way["ratio"] = statistics.median(one / other for one, other in pairs)
        way["ceilings"] = dict(zip(("flops", "bytes"), best[dtype], strict=True))
        way["share_of_flops"] = way["median"] * flops / best[dtype][0]
        way["share_of_bytes"] = way["median"] * values * dtype.itemsize / best[dtype][1]
    return {
        "flops": flops,
        "values_moved": values,
        "difference_from_reference": difference,
        "ways": ways,
    }


# The product


def make_loss(case: Case, group: int, fast: bool) -> LossFunction:
    """The loss of a group of batches."""
    loss = RecoveryLoss(case.teacher, case.cfg, group, case.bf16).to(case.device)
    if not fast:
        return loss
    return compiled(loss, len(case.labels), case.size, case.device)


def ours(case: Case, group: int, loss: LossFunction, iterations: int, advance: Advance) -> None:
    """Recover a group of batches as the step does."""
    labels = case.labels.cpu()
    batches = [Batch(index, torch.arange(len(labels)), labels) for index in range(group)]
    cfg = case.cfg.model_copy(update={"iterations": iterations})
    recover(cfg, [loss], batches, case.size, MEAN, STD, 0, case.device, advance=advance)


def check(case: Case) -> float:
    """How far our losses of a batch are from the reference's, relatively; the larger of the two.

    Raises:
        SystemExit: if they are not the same loss.
    """
    # Far from the statistics, where a distance is more than rounding.
    x = 2 * torch.randn(len(case.labels), 3, case.size, case.size, device=case.device)
    with torch.no_grad():
        truth = reference_losses(
            *watched(case.teacher), x, case.labels, case.cfg.first_bn_multiplier
        )
        terms = make_loss(case, 1, fast=False)(
            x, case.labels, None, torch.ones((), device=case.device)
        )
    pairs = zip((terms.class_loss, terms.matching_loss), truth, strict=True)
    differences = [abs(one.item() / other.item() - 1) for one, other in pairs]
    # Deep nets lose digits of bf16, and of TF32; a term left out would be far more.
    bound = 0.05 if case.bf16 else 0.01
    if not all(difference < bound for difference in differences):
        raise SystemExit(f"our losses differ from the reference's, relatively by {differences}")
    return max(differences)


# Time and memory


def timed(loop: Loop, iterations: int, device: torch.device) -> float:
    """Seconds of so many iterations, after some that are not counted."""
    warm_up, done, marks = by_kind(WARM_UP, device), 0, []

    def advance(note: str) -> None:
        nonlocal done
        done += 1
        if done in (warm_up, warm_up + iterations):
            wait(device)
            marks.append(time.perf_counter())

    loop(warm_up + iterations, advance)
    return marks[1] - marks[0]


def peak_memory(device: torch.device) -> Callable[[], int | None]:
    """Start to look at the memory; the function tells the peak above what is held now, in bytes.

    On a GPU what torch has allocated, elsewhere what is resident of the process, its compiler
    included; None: not known.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        return lambda: torch.cuda.max_memory_allocated(device) - held
    # What was freed is still resident, and the next one would use it unseen.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    process = PeakMemory()
    resident = process.read()
    return lambda: process.read() - resident or None


if __name__ == "__main__":
    main()
