"""Build the tables of the README from benchmarks/results/*.json.

    python benchmarks/tables.py            # rewrite the marked blocks
    python benchmarks/tables.py --check    # fail if a block differs from the files

A block stands between `<!-- table: NAME -->` and `<!-- end -->`, and comes from NAME.json.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scdd.config.posttrain import PosttrainConfig  # noqa: E402
from scdd.progress import duration  # noqa: E402
from scdd.tables import mean_sd, size, table  # noqa: E402

DOCUMENTS = ("README.md",)
BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
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


def build(text: str) -> str:
    """Return a document with every marked block made anew."""

    def block(match: re.Match[str]) -> str:
        path = ROOT / "benchmarks" / "results" / f"{match['name']}.json"
        if not path.exists():
            raise SystemExit(f"{path}: is missing, but a document shows its table")
        return f"{match[1]}{run_table(json.loads(path.read_text()))}{match[3]}"

    return BLOCK.sub(block, text)


def main() -> None:
    """Rewrite the documents, or check them."""
    if not set(sys.argv[1:]) <= {"--check"}:
        raise SystemExit(__doc__)
    stale = []
    for name in DOCUMENTS:
        path = ROOT / name
        text = path.read_text()
        built = build(text)
        if text != built:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(built)
    if stale and "--check" in sys.argv:
        raise SystemExit(f"{', '.join(stale)}: differ from benchmarks/results; run tables.py")


if __name__ == "__main__":
    main()
