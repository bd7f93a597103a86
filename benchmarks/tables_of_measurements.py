"""The tables that results of runs and of the scripts here are shown as; tables.py calls these."""

from statistics import mean, median, stdev
from typing import Any

from scipy.stats import t as student_t

from scdd.config.posttrain import PosttrainConfig
from scdd.progress import duration
from scdd.tables import mean_sd, size, table

EVIDENCE_PREDICTORS = {
    "variance_of_first_means": "var of means, 1st BN",
    "variance_of_means": "var of means",
    "variance_of_variances": "var of variances",
    "entropy": "entropy, nats",
    "probe_top1": "probe, %",
    "class_loss": "class loss",
    "matching_loss": "matching loss",
}
"""What benchmarks/bn_evidence.py correlates, as the table calls it."""
EVIDENCE_OUTCOMES = {
    "recovered, soft": ["distilled", "soft"],
    "recovered, hard": ["distilled", "hard"],
    "random real, soft": ["random real", "soft"],
}
"""With the accuracy of which students: the arm and the labels."""
REAL_PIXELS = {"distilled": "no", "distilled, real start": "start only", "random real": "yes"}


def run_table(result: dict[str, Any]) -> str:
    """The honest table of one run, with its protocol and its hardware."""
    rows = []
    arms = {row["arm"] for row in result["rows"]}
    for arm in (arm for arm in REAL_PIXELS if arm in arms):
        scores = {
            kind: [
                row["top1"] for row in result["rows"] if row["arm"] == arm and row["labels"] == kind
            ]
            for kind in ("soft", "hard")
        }
        label_bytes = max(row["label_bytes"] for row in result["rows"] if row["arm"] == arm)
        cells = [mean_sd(scores["soft"]), mean_sd(scores["hard"]), size(label_bytes)]
        rows.append([arm, REAL_PIXELS[arm], *cells])
    config, environment = result["config"], result["environment"]
    training, seconds = PosttrainConfig(**config["posttrain"]), sum(result["seconds"].values())
    steps_per_epoch = result["rows"][0]["steps"] // training.epochs
    students = f"mean +- sd of {result['n']} students" if result["n"] > 1 else "one student"
    peak = max(value["host"] for value in result["peak_bytes"].values())
    note = (
        f"Top-1 % on {result['val_images']} real validation images, last epoch, {students}. "
        f"Recipe {config['recipe']}, ipc {config['ipc']}; student {training.arch}, "
        f"{training.describe(steps_per_epoch)}. Teacher: {config['squeeze']['arch']}, "
        f"{result['teacher_top1']:.1f} %. The whole run took {duration(seconds)} and "
        f"{size(peak)} on {environment['processor']}, {environment['cpu_threads']} threads, "
        f"torch {environment['versions']['torch']}, commit {result['commit']}."
    )
    headers = ["images", "real pixels", "soft labels", "hard labels", "label bytes"]
    return f"{table(headers, rows)}\n\n{note}\n"


def objectives_table(result: dict[str, Any]) -> str:
    """What each objective's features are worth, beside the untrained net's."""
    names = list(dict.fromkeys(row["objective"] for row in result["rows"]))
    lines = []
    for name in names:
        rows = [row for row in result["rows"] if row["objective"] == name]
        gains = {
            score: [row["trained"][score] - row["untrained"][score] for row in rows]
            for score in ("probe_top1", "knn_top1")
        }
        last = [row["epochs"][-1] for row in rows]
        lines.append(
            [
                name,
                str(len(rows)),
                mean_sd([row["untrained"]["probe_top1"] for row in rows]),
                mean_sd([row["trained"]["probe_top1"] for row in rows]),
                *(mean_sd(values) for values in gains.values()),
                f"{mean(epoch['spread'] for epoch in last):.2f}",
                f"{mean(epoch['effective_rank'] for epoch in last):.0f}",
                str(last[0]["epoch"]),
                duration(max(row["seconds"] for row in rows)),
            ]
        )
    environment, squeeze = result["environment"], result["config"][names[0]]["squeeze"]
    note = (
        f"Top-1 % of a linear probe on frozen features of {squeeze['arch']}, fitted on the images "
        "of the pre-training and measured on the validation images; gains are over the same probe "
        "(and the same nearest neighbours) on the untrained net. Spread and effective rank are of "
        "the embeddings: near 0 and 1 where they collapse. Time: of the pre-training, on "
        f"{environment['processor']}, {environment['cpu_threads']} thread, torch "
        f"{environment['versions']['torch']}, commit {result['commit']}."
    )
    headers = ["objective", "seeds", "untrained", "trained", "gain", "kNN gain", "spread"]
    return f"{table([*headers, 'rank', 'epochs', 'time'], lines)}\n\n{note}\n"


def throughput_table(result: dict[str, Any]) -> str:
    """Views a second beside torchvision's, and their ratio."""
    lines = []
    for row in result["rows"]:
        ours, theirs = median(row["ours"]), median(row["torchvision"])
        lines.append([row["views"], f"{ours:.0f}", f"{theirs:.0f}", f"{ours / theirs:.1f}"])
    environment, settings = result["environment"], result["config"]
    note = (
        f"Images a second with two {settings['size']} px views each, medians of {result['n']} "
        f"interleaved rounds: here with {environment['cpu_threads']} thread, torchvision in "
        f"{settings['workers']} DataLoader workers, on two cores of {environment['processor']}, "
        f"torch {environment['versions']['torch']}, commit {result['commit']}."
    )
    headers = ["views", "images/s", "torchvision, images/s", "ratio"]
    return f"{table(headers, lines)}\n\n{note}\n"


def recover_table(result: dict[str, Any]) -> str:
    """Image-iterations a second of recovery beside the reference loop's, and hours for Table 11."""
    lines, compiling = [], []
    for row in result["rows"]:
        ways = row["ways"]
        last = list(ways.values())[-1]
        peaks = [way["peak_bytes"] for way in (ways["reference"], last)]
        hours = ["-", "-"]
        if row["hours"]:
            reached = [f"{row['hours'][name]:.3g}" for name in ways]
            hours = [", ".join(reached), f"{row['paper_hours']:g}"]
        lines.append(
            [
                f"{row['arch']}, {row['image_size']} px",
                f"{row['group']} x {row['batch']}",
                ", ".join(f"{way['median']:.3g}" for way in ways.values()),
                ", ".join(f"{way['ratio']:.2f}" for way in list(ways.values())[1:]),
                ", ".join("n/a" if peak is None else size(peak) for peak in peaks),
                f"{100 * max(last['share_of_flops'], last['share_of_bytes']):.0f} %",
                *hours,
            ]
        )
        if "compiled" in ways:
            compiling.append(ways["compiled"]["making_seconds"])
    environment, config = result["environment"], result["config"]
    names = ", ".join(result["rows"][0]["ways"])
    hardware = environment.get("gpu") or environment["processor"]
    compiled = f"compiled in {duration(max(compiling))} at most; " if compiling else ""
    note = (
        f"Images times iterations a second: {names}; medians of {result['n']} interleaved rounds "
        f"of about {config['seconds']:g} s, {compiled}ratios to the reference of the same round. "
        "Reference: one batch at a time, eager, fp32, NCHW, hooks on BatchNorm. The others: "
        f"recover's own loop, so many batches in one pass, {config['precision']['ours']}. Memory: "
        "the peak above what was held before, compiling included, of the first and the last of "
        "them. Roofline: what the last one reaches of the measured ceiling, of arithmetic or of "
        "memory, whichever is nearer. Hours: for Table 11 of the paper (ImageNet-1K, ipc 50, "
        f"1,000 iterations), whose own are of one RTX 4090. {hardware}, "
        f"{environment['cpu_threads']} threads, torch {environment['versions']['torch']}, "
        f"commit {result['commit']}."
    )
    headers = ["net", "group x batch", "images/s", "ratio", "memory", "roofline", "hours", "paper"]
    return f"{table(headers, lines)}\n\n{note}\n"


def evidence_table(result: dict[str, Any]) -> str:
    """What teachers are like and what became of their students, then the rank correlations."""
    teachers = [
        [
            row["objective"],
            str(row["epochs"]),
            *(f"{row[name]:.3g}" for name in EVIDENCE_PREDICTORS),
            *(
                mean_sd([s["top1"] for s in row["students"] if [s["arm"], s["labels"]] == wanted])
                for wanted in EVIDENCE_OUTCOMES.values()
            ),
        ]
        for row in result["rows"]
    ]
    ranks = [
        [outcome, *(f"{rho:+.2f} (p {p:.2g})" for rho, p in of.values())]
        for outcome, of in result["correlations"].items()
    ]
    environment, config = result["environment"], result["config"]
    note = (
        f"{result['n']} teachers, {environment['processor']}, {environment['cpu_threads']} thread, "
        f"torch {environment['versions']['torch']}, commit {result['commit']}. Students: top-1 %, "
        f"mean +- sd of {config['posttrain']['seeds']}, ipc {config['ipc']}. Correlations are "
        "Spearman's over the teachers, with p-values."
    )
    names = [*EVIDENCE_PREDICTORS.values()]
    return "\n\n".join(
        [
            table(["teacher", "epochs", *names, *EVIDENCE_OUTCOMES], teachers),
            table(["rank correlation with", *names], ranks),
            f"{note}\n",
        ]
    )


def label_table(result: dict[str, Any]) -> str:
    """What each store of soft labels takes and what it is worth, then images and layouts."""
    scores = {
        name: [row["top1"] for row in sorted(result["rows"], key=_seed) if row["arm"] == name]
        for name in result["arms"]
    }
    full = result["arms"]["full"]["bytes"]
    arms = []
    for name, arm in result["arms"].items():
        differences = [a - b for a, b in zip(scores[name], scores["full"], strict=True)]
        stored = arm["bytes"] if "kl" in arm else 0
        arms.append(
            [
                name,
                str(arm["views"]),
                size(stored) if stored else "-",
                f"{100 * stored / full:.1f} %",
                f"{arm['kl']:.1e}" if "kl" in arm else "-",
                mean_sd(scores[name]),
                "-" if name == "full" else _paired(differences),
            ]
        )
    raw = result["images"]["uint8"]
    images = [[name, size(count), f"{count / raw:.2f}"] for name, count in result["images"].items()]
    layouts = [
        [
            f"{row['chunk_kib']} KiB" + (f", {row['filters']}" if row["filters"] else ""),
            f"{row['share']:.2f}",
            *(f"{row[key]:.0f}" for key in ("write_mb_s", "read_mb_s")),
            f"{row['random_batch_ms']:.1f}",
        ]
        for row in result["layouts"]
    ]
    config, environment = result["config"], result["environment"]
    training = PosttrainConfig(**config["posttrain"])
    steps = result["steps"] // training.epochs
    note = (
        f"Top-1 % on {result['rows'][0]['val_images']} real validation images, last epoch, mean "
        f"+- sd of {result['n']} students; difference to the full store, student by student, with "
        "its standard error and 95 % interval. Bytes count labels and view records. KL: mean "
        f"divergence from the full labels at T = {training.temperature:g}, in nats. "
        f"{result['classes']} classes, ipc {config['ipc']}, "
        f"{config['dataset']['image_size']} px, mix "
        f"{config['relabel']['mix']}; student {training.arch}, {training.describe(steps)}; a view "
        f"an epoch, in turn. Of labels: 50,000 images, 1,000 classes. {environment['processor']}, "
        f"torch {environment['versions']['torch']}, commit {result['commit']}."
    )
    return "\n\n".join(
        [
            table(["labels", "views", "bytes", "of full", "KL", "top-1", "difference"], arms),
            table(["images as", "bytes", "of uint8"], images),
            table(["chunks", "of raw", "write MB/s", "read MB/s", "64 rows, ms"], layouts),
            f"{note}\n",
        ]
    )


def _seed(row: dict[str, Any]) -> int:
    return row["seed"]


def _paired(differences: list[float]) -> str:
    """Mean difference +- standard error, and its 95 % interval by Student's t."""
    if len(differences) < 2:
        return f"{mean(differences):+.1f}"
    error = stdev(differences) / len(differences) ** 0.5
    middle, half = mean(differences), error * float(student_t.ppf(0.975, len(differences) - 1))
    return f"{middle:+.1f} +- {error:.1f} [{middle - half:+.1f}, {middle + half:+.1f}]"


def loader_table(result: dict[str, Any]) -> str:
    """Samples a second of every way to read a file, then images a second of a training."""
    config, environment = result["config"], result["environment"]
    names = list(result["rows"][0]["ways"])
    lines = [
        [what, *(_rate(ways[name]) if name in ways else "-" for name in names)]
        for what, ways in [
            *((row["views"], row["ways"]) for row in result["rows"]),
            *((f"training {row['arch']}", row["ways"]) for row in result["trainings"]),
        ]
    ]
    note = (
        f"Samples a second, medians of {result['n']} interleaved rounds of about "
        f"{config['seconds']:g} s, and in brackets how many times the plain pipeline in the same "
        f"round. {config['images']} images of {config['size']} px, {config['classes']} classes, "
        f"batches of {config['batch']}. Plain: stored views replayed sample by sample by h5py and "
        f"torchvision in {config['workers']} DataLoader workers, each h5py dataset looked up by "
        "name as one writes it down, or kept at hand. Trainings use the views of the "
        f"last row. {environment['processor']}, {environment['cpu_threads']} threads, torch "
        f"{environment['versions']['torch']}, commit {result['commit']}."
    )
    return f"{table(['views', *names], lines)}\n\n{note}\n"


def _rate(way: dict[str, Any]) -> str:
    return f"{way['median']:.0f} ({way['ratio']:.1f})"


def store_table(result: dict[str, Any]) -> str:
    """What reading a large store of soft labels costs."""
    config, environment = result["config"], result["environment"]
    times = [
        [name, f"{result[key]['median_ms']:.1f} ms", f"{result[key]['p95_ms']:.1f} ms"]
        for name, key in (("random images and view", "random"), ("iterator", "iterator"))
    ]
    speeds = [
        [
            name,
            *(f"{result[name][key]:.0f} MB/s" for key in ("ours_mb_s", "plain_mb_s")),
            f"{result[name]['ratio']:.2f}",
        ]
        for name in ("cold", "warm")
    ]
    note = (
        f"{config['images']} images of 32 px, {config['views']} views, {config['classes']} "
        f"classes, float16: {size(result['bytes'])}. Opened in {result['open_seconds']:.1f} s; "
        f"peak of memory {size(result['peak_bytes'])}, of which {size(result['imported_bytes'])} "
        "were taken by imports alone. Plain: the same bytes by read(); cold: after the system was "
        f"asked to forget them. {environment['processor']}, {config['threads']} threads, torch "
        f"{environment['versions']['torch']}, commit {result['commit']}."
    )
    batches = table([f"batch of {config['batch']}", "median", "95 %"], times)
    labels = table(["labels in sequence", "ours", "plain file", "ratio"], speeds)
    return f"{batches}\n\n{labels}\n\n{note}\n"


def clusters_table(result: dict[str, Any]) -> str:
    """How far images of a class stand together, as the teacher sees them."""
    lines = [
        [row["images"], str(row["count"]), two_digits(row["rand"]), two_digits(row["silhouette"])]
        for row in result["rows"]
    ]
    config, environment = result["config"], result["environment"]
    note = (
        f"In the features of the teacher ({config['teacher']}), {config['classes']} classes: "
        "adjusted Rand index of k-means' clusters against the classes (0: chance), and silhouette "
        f"of the classes. {environment['processor']}, torch {environment['versions']['torch']}, "
        f"commit {result['commit']}."
    )
    return f"{table(['images', 'count', 'adjusted Rand', 'silhouette'], lines)}\n\n{note}\n"


def two_digits(value: float | None) -> str:
    """`0.53`, or `n/a` for None."""
    return "n/a" if value is None else f"{value:.2f}"
