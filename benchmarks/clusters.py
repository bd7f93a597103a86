"""Do distilled images form the clusters of their classes, as the teacher sees them?

    python benchmarks/clusters.py FILE... [--data DIR] --teacher teacher.safetensors --out PNG
        [--classes 10] [--result FILE] [--device cpu]

After Figures 7 and 10 of SC-DD (arXiv:2404.07976): features of the images before the classifier,
drawn on their first two principal components, a colour a class. In numbers: how well k-means, with
as many clusters as classes, finds the classes (adjusted Rand index; 1: exactly, 0: as chance does),
and the silhouette of the classes themselves (1: far apart, 0: they touch, below: mixed up), both in
the whole feature space. Beside FILEs stand as many random real images of DIR's train/; without DIR,
those of random_real.h5 beside the first FILE.

Principal components are those of the real images (or of the first FILE), so that all panels have
the same axes. Real images of pre-training may be nearer to their clusters than new ones would be.
"""

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from plain_errors import in_a_sentence  # noqa: E402
from provenance import measured_on, refuse_other_picture, refuse_other_result  # noqa: E402
from record import commit  # noqa: E402
from tables_of_measurements import clusters_table, two_digits  # noqa: E402

from scdd.augment import normalise  # noqa: E402
from scdd.checkpoint import fill, load_weights  # noqa: E402
from scdd.datasets import load_split  # noqa: E402
from scdd.device import resolve_device  # noqa: E402
from scdd.distilled import DistilledFile  # noqa: E402
from scdd.errors import CheckpointError, DataError, UserError  # noqa: E402
from scdd.files import replacing, write_json  # noqa: E402
from scdd.models import recreate  # noqa: E402
from scdd.stages.select import random_real  # noqa: E402

SCHEMA = "scdd clusters 1"
REAL = "random real"
BATCH = 500
STARTS = 10
"""Of k-means, the best of which counts."""
Images = tuple[Tensor, Tensor]
"""uint8 [N, 3, S, S] and int64 [N]."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute features, draw, print."""
    options = parse(arguments)
    refuse_other_result(options.result, SCHEMA)
    refuse_other_picture(options.out)
    device = resolve_device(options.device)
    weights, facts = load_weights(options.teacher)
    if "classes" not in facts:
        raise CheckpointError(f"{options.teacher}: is no teacher; give the teacher.safetensors")
    backbone = fill(recreate(facts), weights, options.teacher)
    backbone.set_submodule(backbone.head, nn.Identity())
    classes = tuple(facts["classes"])
    shown = min(options.classes, len(classes))
    sets: dict[str, Images] = {}
    for path in options.files:
        sets[label_of(path, options.files)] = read_file(path, classes, facts["image_size"], shown)
    most = max(int(torch.bincount(labels).max()) for _, labels in sets.values())
    real = real_images(options.data, options.files[0], facts, shown, most)
    if real is not None:
        sets[REAL] = real
    backbone.to(device).eval()
    features = {
        name: features_of(backbone, images, facts, device) for name, (images, _) in sets.items()
    }
    labels = {name: labels.numpy() for name, (_, labels) in sets.items()}
    rows = [
        {"images": name, "count": len(labels[name]), **measures(features[name], labels[name])}
        for name in sets
    ]
    draw(options.out, features, labels, rows, classes[:shown])
    result = {
        "schema": SCHEMA,
        "commit": commit(),
        "environment": measured_on(device),
        "n": 1,
        "config": {"classes": shown, "teacher": facts["arch"], "val_top1": facts.get("val_top1")},
        "rows": rows,
    }
    if options.result:
        write_json(options.result, result)
    print(clusters_table(result))
    if real is None:
        print("no random real images: give --data DIR, or a FILE beside its random_real.h5")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--classes", type=int, default=10, help="the first so many")
    parser.add_argument("--result", type=Path)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if options.classes < 2:
        parser.error(f"--classes is {options.classes}; clusters want 2 or more")
    return options


def label_of(path: Path, all_of_them: Sequence[Path]) -> str:
    """Name of a file, with its folder where several have that name."""
    twice = [other.name for other in all_of_them].count(path.name) > 1
    return f"{path.absolute().parent.name}/{path.name}" if twice else path.name


def read_file(path: Path, classes: tuple[str, ...], size: int, shown: int) -> Images:
    """The images of the first classes of a distilled file.

    Raises:
        UserError: if it has other classes, or another size, than the teacher knows.
    """
    with DistilledFile(path) as file:
        header, images, labels = file.header, file.images(), file.labels()
    if tuple(header.class_names) != classes or header.image_size != size:
        raise UserError(
            f"{path}: is of other classes or another image size than the teacher knows; give the "
            "teacher of its run"
        )
    rows = (labels >= 0) & (labels < shown)
    return images[rows], labels[rows].long()


def real_images(
    data: Path | None, file: Path, facts: Mapping[str, Any], shown: int, most: int
) -> Images | None:
    """At most `most` random real images of each of the first classes; None where there are none.

    Raises:
        UserError: if the classes are others.
    """
    classes, size = tuple(facts["classes"]), facts["image_size"]
    if data is None:
        beside = file.with_name("random_real.h5")
        return read_file(beside, classes, size, shown) if beside.is_file() else None
    source = load_split(data, "train", size, tuple(facts["mean"]), tuple(facts["std"]))
    if tuple(source.classes) != classes:
        raise DataError(f"--data {data}: has other classes than the teacher knows")
    fewest = int(torch.bincount(source.labels).min())
    rows = random_real(source, min(most, fewest), 0)
    rows = rows[source.labels[rows] < shown]
    return source.read(rows), source.labels[rows].long()


@torch.no_grad()
def features_of(
    backbone: nn.Module, images: Tensor, facts: Mapping[str, Any], device: torch.device
) -> NDArray[np.float64]:
    """Features [N, D] of whole images, normalised as the teacher knows them."""
    parts = [
        backbone(normalise(part.to(device).float() / 255, facts["mean"], facts["std"]))
        for part in images.split(BATCH)
    ]
    return torch.cat(parts).double().cpu().numpy()


def measures(features: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float | None]:
    """Adjusted Rand index of k-means' clusters, silhouette of the classes; None: not defined."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, silhouette_score

    count = len(np.unique(labels))
    with warnings.catch_warnings():
        # Images that are the same to the teacher make fewer clusters, which the index tells.
        warnings.filterwarnings("ignore", "Number of distinct clusters")
        found = KMeans(count, n_init=STARTS, random_state=0).fit_predict(features)
    several = 2 <= count < len(labels)
    return {
        "rand": float(adjusted_rand_score(labels, found)),
        "silhouette": float(silhouette_score(features, labels)) if several else None,
    }


def draw(
    path: Path,
    features: Mapping[str, NDArray[np.float64]],
    labels: Mapping[str, NDArray[np.int64]],
    rows: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
) -> None:
    """A panel each, of two principal components."""
    from sklearn.decomposition import PCA

    axes_of = PCA(2, random_state=0).fit(features.get(REAL, next(iter(features.values()))))
    figure = Figure(figsize=(4 * len(features), 4.2), layout="constrained")
    panels = figure.subplots(1, len(features), squeeze=False, sharex=True, sharey=True)[0]
    for panel, (name, own), row in zip(panels, features.items(), rows, strict=True):
        places = axes_of.transform(own)
        for label, title in enumerate(classes):
            x, y = places[labels[name] == label].T
            panel.scatter(x, y, s=12, color=f"C{label % 10}", label=title[:14])
        rand, silhouette = two_digits(row["rand"]), two_digits(row["silhouette"])
        panel.set_title(f"{name}\nRand {rand}, silhouette {silhouette}", fontsize=9)
        panel.set_xticks([])
        panel.set_yticks([])
    panels[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


if __name__ == "__main__":
    in_a_sentence(main)
