"""The dataset card: README.md with the front matter of the Hugging Face hub.

Texts of the file come from anyone. In YAML they go through its writer, in Markdown into code spans.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from scdd.config.load import read_run_config
from scdd.distilled import DistilledDataset, Header, read_header
from scdd.distilled.computed_labels import TEACHER
from scdd.errors import UserError
from scdd.inspection import printable
from scdd.report import accuracy_table, protocol_line, read_scores
from scdd.run import RunDirectory
from scdd.steps import Context
from scdd.tables import size

COPY = "distilled.h5"
"""Name of the distilled file beside the images."""

SHOWN_CLASSES = 20
LONGEST_TEXT = 120
DATA_FILES = {"imagefolder": "train/**", "parquet": "data/train.parquet"}
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))


def dataset_card(
    data: DistilledDataset,
    codec: str | None,
    form: str,
    copies: Sequence[str],
    scores: list[str],
) -> str:
    """Return README.md.

    Args:
        data: what is exported.
        codec: how its soft labels are stored; None: it has none.
        form: imagefolder or parquet.
        copies: files beside: COPY, and TEACHER where that is to compute the labels.
        scores: paragraphs on them.
    """
    header = data.header
    paragraphs = [
        *opening(header, form, "image-classification", header.count),
        "\n".join(_facts(data)),
        "## Labels",
        _labels(data, codec, copies),
        "## Scores",
        *(scores or ["Not scored: the file does not lie in a finished run."]),
        "## Loading",
        *_loading(form, COPY in copies),
        "## Classes",
        "\n".join(_classes(header.class_names, form)),
    ]
    return "\n\n".join(paragraphs) + "\n"


def scores_of(file: Path, header: Header) -> list[str]:
    """Scores and baselines of the run directory in which `file` lies; none if it was not scored.

    Raises:
        UserError: if what lies there is damaged.
    """
    cfg, path = read_run_config(file.parent), file.parent / "results.json"
    if cfg is None or not path.exists():
        return []
    context = Context(cfg, RunDirectory(file.parent), torch.device("cpu"), ())
    arm = next((arm for arm in context.arms() if arm.file == file.name), None)
    made = file.parent / arm.step / arm.file if arm is not None else None
    if arm is None or made is None or not made.exists():
        return []
    if read_header(made).digest != header.digest:
        return []  # Another file under the name of the one that was scored.
    results = read_scores(path)
    try:
        rows = accuracy_table(context, results)
        protocol = protocol_line(cfg.posttrain, cfg.recipe, results)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: is damaged; make it again with --redo posttrain") from error
    compared = "compare them with *random real*, which is untouched training images."
    if not cfg.has_baseline:
        compared = "it is random untouched training images, the baseline of other methods."
    return [
        f"This dataset is the row *{arm.name}*. All rows have the same training; {compared}",
        rows,
        code(protocol, longest=1000),
    ]


def code(text: str, longest: int = LONGEST_TEXT) -> str:
    """Put a stranger's text, shortened, into a code span that it cannot end or reach out of."""
    shown = printable(text)
    shown = shown if len(shown) <= longest else shown[: longest - 3] + "..."
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    # Without the spaces a backtick at either end would become part of the fence.
    apart = " " if "`" in shown or not shown.strip() else ""
    return f"{fence}{apart}{shown}{apart}{fence}"


def opening(header: Header, form: str, task: str, count: int) -> list[str]:
    """Paragraphs that every card begins with.

    Args:
        header: of the file.
        form: one of DATA_FILES, or one whose files the hub cannot show.
        task: what the hub calls the use of the data.
        count: number of images.
    """
    front = yaml.safe_dump(_front_matter(header, form, task, count), sort_keys=False, width=1000)
    return [
        f"---\n{front}---",
        f"# {code(header.dataset)} distilled by {code(header.method)}",
        "**Licence:** not chosen yet. These images come from others, so their terms, and those of "
        "the teacher's weights, decide which is possible. Set `license` in the first lines, and "
        "remove this paragraph.",
    ]


def origin_facts(header: Header) -> list[str]:
    """Lines on how the images were made and are normalised."""
    mean, std = (", ".join(f"{x:.4f}" for x in values) for values in (header.mean, header.std))
    ours, torch_version = (str(header.versions.get(name, "?")) for name in ("scdd", "torch"))
    return [
        f"- Method: {code(header.method)}, recipe {code(header.recipe)}, seed {header.seed}",
        f"- Teacher: {_network(header.teacher)}",
        *_labellers(header.teacher),
        f"- Normalisation, of pixels in 0 .. 1: mean {mean}; standard deviation {std}",
        f"- Made by scdd {code(ours)} with torch {code(torch_version)}, {code(header.created)}",
        f"- Digest of the distilled file: {code(header.digest)}",
    ]


def _front_matter(header: Header, form: str, task: str, count: int) -> dict[str, Any]:
    name = f"{header.dataset} distilled by {header.method}"
    category = next((name for limit, name in _SIZES if count < limit), "n>1M")
    files = [{"split": "train", "path": DATA_FILES[form]}] if form in DATA_FILES else []
    return {
        "license": "unknown",
        "pretty_name": printable(name[:LONGEST_TEXT]),
        "task_categories": [task],
        "size_categories": [category],
        "tags": ["dataset-distillation", "scdd"],
        **({"configs": [{"config_name": "default", "data_files": files}]} if files else {}),
    }


def _facts(data: DistilledDataset) -> list[str]:
    side = data.image_size
    return [
        f"- Images: {len(data)} of {side} x {side} px, RGB, 8 bits, as they are in the file; "
        + _counts(data),
        f"- Classes: {len(data.classes)}",
        *origin_facts(data.header),
    ]


def _counts(data: DistilledDataset) -> str:
    ipc, without = data.header.ipc, int((data.labels < 0).sum())
    if ipc is not None:
        return (
            f"{ipc} per class, one of each class in turn, so the first k x {len(data.classes)} "
            "are the subset of k per class"
        )
    return "not the same number of each class" + (
        f"; {without} without a class (label -1)" if without else ""
    )


def _labellers(about: Any) -> list[str]:
    """A line for each network whose mean the labels are, where they are not the teacher's."""
    found = about.get("labellers") if isinstance(about, dict) else None
    return [f"- Labels by: {_network(one)}" for one in found] if isinstance(found, list) else []


def _network(about: Any) -> str:
    """What is recorded of a network, in words."""
    known = {
        "arch": "architecture",
        "stem": "stem",
        "objective": "objective",
        "epoch": "epochs",
        "val_top1": "validation top-1 %",
        "bn": "BatchNorm statistics while labelling",
        "weights": "SHA-256 of the weights file",
    }
    shown = []
    for name, words in known.items():
        value = about.get(name) if isinstance(about, dict) else None
        if value is not None:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            shown.append(f"{words} {code(text)}")
    return ", ".join(shown) or "nothing recorded"


def _labels(data: DistilledDataset, codec: str | None, copies: Sequence[str]) -> str:
    if data.records is None:
        return "Each image has its class and nothing else: there are no soft labels."
    views = f"{data.num_views} stored views of each image ({', '.join(data.records.ops)})"
    if codec is None:
        labels = f"For training on classes there are {views}, without soft labels."
    elif codec == "teacher":
        place = f"in `{TEACHER}`" if TEACHER in copies else "not here"
        labels = f"Soft labels are what the teacher says of {views}; its weights are {place}."
    else:
        labels = (
            f"Soft labels, {size(data.label_bytes)} with the view records and stored as {codec}, "
            f"are the teacher's logits on {views}."
        )
    where = f"in `{COPY}`" if COPY in copies else "not here (`scdd export --with-file` adds them)"
    return (
        f"Here each image has its class. {labels} Views are {where}. A soft label belongs to the "
        "pixels of its view and to no others, so it is not repeated beside the whole image."
    )


def _loading(form: str, copied: bool) -> list[str]:
    lines = [
        "With Hugging Face `datasets`, from this folder or from the hub:",
        '```python\nfrom datasets import load_dataset\n\ndata = load_dataset("FOLDER", '
        'split="train")\n```',
    ]
    if form == "imagefolder":
        lines += [
            "That numbers classes by the sorted names of their folders, and orders images by "
            "folder. `classes.json` has the class name and the label of each folder, and the name "
            "of an image is its row, so this restores images, labels, class names and order:",
            "    scdd import FOLDER --out FILE.h5",
        ]
    if copied:
        lines += [
            "With soft labels and views, by scdd itself:",
            "```python\nfrom scdd import DistilledDataset\n\n"
            f'data = DistilledDataset.open("FOLDER/{COPY}")\n```',
        ]
    return lines


def _classes(names: tuple[str, ...], form: str) -> list[str]:
    lines = [f"- {label}: {code(name)}" for label, name in enumerate(names[:SHOWN_CLASSES])]
    if len(names) > SHOWN_CLASSES:
        rest = "`classes.json`" if form == "imagefolder" else "the feature `label`"
        lines.append(f"- and {len(names) - SHOWN_CLASSES} more, in {rest}")
    return lines
