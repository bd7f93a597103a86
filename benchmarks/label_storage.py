"""What soft labels cost and what they are worth: bytes and accuracy of codecs and budgets.

    scdd distill benchmarks/label_storage.yaml --data DIR --until recover --out runs/labels
    python benchmarks/label_storage.py runs/labels --out runs/label_arms [--seeds N]
        [--processes N] [--device cuda] [--result FILE] [--plot PNG]

The first command makes images and a teacher (any configuration will do). The second labels them
once for each arm, by the step of a real run, and trains the same students on each file: student
k has the same initial weights and order of images in every arm, so that differences are paired. The
budget of 1/40 counts soft labels and view records together, and is met by fewer views, by smaller
labels, or both. Finished arms and students are files under --out, so the command goes on where it
was stopped; `--processes` shares the students.

Then come the bytes of the images under lossless compression, and of one store of labels, 2 views of
50,000 images and 1,000 classes, how fast it is read in other chunks and with HDF5's filters.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from record import commit, without_folder  # noqa: E402
from tables_of_measurements import label_table  # noqa: E402

from scdd.config.load import check, read_run_config  # noqa: E402
from scdd.config.run import RunConfig  # noqa: E402
from scdd.datasets import load_dataset  # noqa: E402
from scdd.datasets.pixel_statistics import with_statistics  # noqa: E402
from scdd.device import resolve_device  # noqa: E402
from scdd.distilled import DistilledFile, label_sizes  # noqa: E402
from scdd.files import write_json  # noqa: E402
from scdd.pipeline import distill  # noqa: E402
from scdd.posttraining import steps_per_epoch  # noqa: E402
from scdd.progress import say  # noqa: E402
from scdd.run import environment  # noqa: E402
from scdd.stages.posttrain import new_student, open_for_training, train_student  # noqa: E402
from scdd.steps import student_seed  # noqa: E402
from scdd.training import evaluate  # noqa: E402

SCHEMA = "scdd label storage 1"
BUDGET = 40
"""The smallest stores have 1 / this of the bytes of the full one."""
ARMS: dict[str, dict[str, Any]] = {
    "full": {"codec": "full"},
    "int8": {"codec": "int8"},
    "int4": {"codec": "int4"},
    "topk 10": {"codec": "topk", "top": 10},
    "full, 1/40": {"codec": "full", "views": None},
    "int8, 1/40": {"codec": "int8", "views": None},
    "int4, 1/40": {"codec": "int4", "views": None},
    "int4, 1/40, flips": {"codec": "int4", "views": None, "flip": 0.5},
    "full, flips": {"codec": "full", "flip": 0.5},
    "topk 5, 1/40": {"codec": "topk", "top": 5, "views": None},
    "hard": {"codec": "hard"},
}
"""Changes of the section `relabel`; `views: null`: as many as the budget holds. `flip` goes to the
section `posttrain`: views mirrored once more while training."""


def main() -> None:
    """Label, train, weigh; print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--only", action="append", choices=list(ARMS))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--result", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = resolve_device(options.device)
    cfg = read_run_config(options.run)
    if cfg is None:
        raise SystemExit(f"{options.run}: is not a run; make one with scdd distill --until recover")
    names = list(ARMS) if options.only is None else ["full", *options.only]
    plan = [(name, seed) for seed in range(options.seeds or cfg.posttrain.seeds) for name in names]
    if options.share is not None:
        for name, seed in plan[options.share :: options.processes]:
            train(cfg, name, seed, options.out, device)
        return
    for name in names:
        make_file(cfg, name, options.run, options.out, device)
    share(options.processes)
    rows = [json.loads(row_path(options.out, name, seed).read_text()) for name, seed in plan]
    result = {
        "schema": SCHEMA,
        "commit": commit(),
        "environment": environment(str(device), torch.get_num_threads()),
        "n": len(plan) // len(names),
        "config": without_paths(cfg),
        "classes": number_of_classes(cfg),
        "steps": rows[0]["steps"],
        "arms": {name: weigh(cfg, name, options.out) for name in names},
        "rows": rows,
        "images": images_under_compression(options.out / "full" / "distilled.h5"),
        "layouts": layouts(options.out / "full" / "distilled.h5"),
    }
    words = result["environment"]["command"].split()
    result["environment"]["command"] = " ".join(map(without_folder, words))
    print(label_table(result))
    if options.result:
        write_json(options.result, result)
    if options.plot:
        plot(result, options.plot)


def without_paths(cfg: RunConfig) -> dict[str, Any]:
    """The configuration, with the last part of the folder of images only."""
    config = cfg.model_dump(mode="json")
    config["dataset"]["root"] = without_folder(config["dataset"]["root"] or "") or None
    return config


def arm_config(cfg: RunConfig, name: str) -> RunConfig:
    """The configuration of an arm: the run's with another section `relabel`."""
    changes = dict(ARMS[name])
    flip = changes.pop("flip", cfg.posttrain.flip)
    if "views" in changes:
        changes["views"] = views_within_budget(cfg, changes)
    settings = cfg.model_dump(mode="json")
    settings["relabel"] |= changes | {"rest_temperature": cfg.posttrain.temperature}
    settings["recover_real"] = None
    settings["posttrain"]["flip"] = flip
    settings["posttrain"]["labels"] = ["hard"] if changes["codec"] == "hard" else ["soft"]
    return check(settings, name)


def views_within_budget(cfg: RunConfig, changes: dict[str, Any]) -> int:
    """Views that the budget holds, at least one."""
    full = bytes_a_view(cfg, {"codec": "full"}) * cfg.relabel.views
    return max(1, int(full / BUDGET / bytes_a_view(cfg, changes)))


def bytes_a_view(cfg: RunConfig, changes: dict[str, Any]) -> float:
    """Bytes of the soft labels and records of one view of all images."""
    classes, count = number_of_classes(cfg), number_of_classes(cfg) * cfg.ipc
    relabel = cfg.relabel.model_copy(update=changes | {"views": 1})
    sizes = label_sizes(relabel, count, cfg.dataset.image_size, classes)
    return sizes.labels + sizes.views


_classes: list[int] = []


def number_of_classes(cfg: RunConfig) -> int:
    """Classes of the images."""
    if not _classes:
        _classes.append(len(load_dataset(cfg.dataset).val.classes))
    return _classes[0]


def make_file(cfg: RunConfig, name: str, run: Path, out: Path, device: torch.device) -> None:
    """Label the images of `run` as the arm says, by the step of a run."""
    if not (out / name / "distilled.h5").exists():
        if not (out / name).exists():
            shutil.copytree(run, out / name)
        distill(arm_config(cfg, name), out / name, device, until="relabel")


def row_path(out: Path, name: str, seed: int) -> Path:
    """Where the score of a student is kept."""
    return out / "rows" / f"{name.replace('/', '_')}-{seed}.json"


def share(processes: int) -> None:
    """Train all students, in processes that take every n-th one."""
    started = [
        subprocess.Popen([sys.executable, *sys.argv, "--share", str(number)])
        for number in range(processes)
    ]
    if any(process.wait() != 0 for process in started):
        raise SystemExit("a student could not be trained; the reason stands above")


def train(cfg: RunConfig, name: str, seed: int, out: Path, device: torch.device) -> None:
    """Train student `seed` of an arm and keep its score."""
    path = row_path(out, name, seed)
    if path.exists():
        return
    kind = "hard" if ARMS[name]["codec"] == "hard" else "soft"
    training = arm_config(cfg, name).posttrain
    data = open_for_training(out / name / "distilled.h5", (kind,), training, device)
    val = with_statistics(load_dataset(cfg.dataset).val, data.mean, data.std)
    number = student_seed(cfg.seed, seed)
    student = new_student(training.arch, data, number)
    started = time.monotonic()
    train_student(training, student, data, kind, number, device)
    top1 = evaluate(student, val, device).top1
    row = {"arm": name, "seed": seed, "top1": top1, "seconds": time.monotonic() - started}
    say(f"{name}, student {seed}: {top1:.1f} %")
    steps = training.epochs * steps_per_epoch(training, data)
    write_json(path, row | {"val_images": len(val.labels), "steps": steps, "commit": commit()})


def weigh(cfg: RunConfig, name: str, out: Path) -> dict[str, Any]:
    """Bytes of a file's labels and records, and how far its labels are from the full ones."""
    with DistilledFile(out / name / "distilled.h5") as file:
        found: dict[str, Any] = {"bytes": file.label_bytes, "views": file.num_views}
        if file.codec is not None:
            with DistilledFile(out / "full" / "distilled.h5") as full:
                found["kl"] = mean_kl(full, file, cfg.posttrain.temperature)
    return found


def mean_kl(full: DistilledFile, other: DistilledFile, temperature: float) -> float:
    """Mean KL divergence of stored labels from the full ones, in nats, both softened."""
    total = torch.zeros((), dtype=torch.float64)
    for view in range(other.num_views):
        wanted = F.log_softmax(full.logits(view).double() / temperature, dim=1)
        found = F.log_softmax(other.logits(view).double() / temperature, dim=1)
        total += F.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return total.item() / other.num_views


def images_under_compression(path: Path) -> dict[str, int]:
    """Bytes of all images by the way in which they could be stored."""
    with DistilledFile(path) as file:
        images = file.images().numpy()
    planes = images.tobytes()
    return {
        "uint8": images.nbytes,
        "gzip": len(zlib.compress(planes, 9)),
        "png": _encoded(images, "PNG", optimize=True),
        "webp": _encoded(images, "WEBP", lossless=True, quality=100, method=6),
    }


def _encoded(images: np.ndarray, kind: str, **options: Any) -> int:
    total = 0
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(buffer, kind, **options)
        total += buffer.tell()
    return total


def layouts(path: Path, count: int = 50_000, classes: int = 1000) -> list[dict[str, Any]]:
    """One store in other chunks and filters: bytes, and how fast it is written and read.

    Values are logits of `path`, repeated in another order for more classes and images.
    """
    draw = np.random.default_rng(0)
    with DistilledFile(path) as file:
        some = torch.cat([file.logits(view) for view in range(min(20, file.num_views))]).numpy()
    rows = draw.integers(len(some), size=count)
    columns = draw.integers(some.shape[1], size=classes)
    values = some[rows][:, columns].astype("<f2")
    found = []
    for kib in (8, 32, 128, 1024):
        found.append(_layout(values, kib, {}))
    found.append(_layout(values, 32, {"shuffle": True, "compression": "gzip"}))
    found.append(_layout(values, 32, {"shuffle": True, "compression": "lzf"}))
    return found


def _layout(values: np.ndarray, kib: int, filters: dict[str, Any]) -> dict[str, Any]:
    draw = np.random.default_rng(1)
    chunk = (1, max(1, kib * 1024 // (2 * values.shape[1])), values.shape[1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layout.h5"

        def write() -> None:
            with h5py.File(path, "w", libver=("v110", "v110")) as file:
                store = file.create_dataset(
                    "logits", (2, *values.shape), "<f2", chunks=chunk, fletcher32=True, **filters
                )
                store[0], store[1] = values, values[::-1]

        written = _seconds(write)
        with h5py.File(path) as file:
            store = file["logits"]
            store[0]
            read = _seconds(lambda: store[1])
            random_batches = []
            for _ in range(50):
                rows = draw.choice(len(values), 64, replace=False)
                random_batches.append(_seconds(lambda rows=rows: [store[1, row] for row in rows]))
        return {
            "chunk_kib": kib,
            "filters": f"shuffle and {filters['compression']}" if filters else "",
            "share": path.stat().st_size / (2 * values.nbytes),
            "write_mb_s": 2 * values.nbytes / written / 1e6,
            "read_mb_s": values.nbytes / read / 1e6,
            "random_batch_ms": 1000 * median(random_batches),
        }


def plot(result: dict[str, Any], path: Path) -> None:
    """Accuracy over the bytes of labels and records, one point an arm."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    full = result["arms"]["full"]["bytes"]
    for name, arm in result["arms"].items():
        scores = [row["top1"] for row in result["rows"] if row["arm"] == name]
        spread = stdev(scores) if len(scores) > 1 else 0
        if "kl" not in arm:
            axes.axhline(mean(scores), color="grey", linestyle=":", label="hard labels")
            continue
        axes.errorbar(arm["bytes"] / 1e6, mean(scores), spread, fmt="o", capsize=3, label=name)
    axes.axvline(full / BUDGET / 1e6, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="MB of soft labels and view records", ylabel="top-1 %")
    axes.legend(fontsize=8, loc="center")
    figure.savefig(path, dpi=130)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
