"""Build the tables of the documents from benchmarks/results/*.json.

    python benchmarks/tables.py            # rewrite the marked blocks
    python benchmarks/tables.py --check    # fail if a block differs from the files

A block stands between `<!-- table: NAME -->` and `<!-- end -->`, and comes from NAME.json. All
documents are looked at: README.md and docs/*.md. An empty block waits for its first result.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "apps"), str(ROOT / "benchmarks")]

from ablation_table import ablation_table  # noqa: E402
from cost_tables import hours_table, scaling_table  # noqa: E402
from pairs_table import pairs_table  # noqa: E402
from study_table import study_table  # noqa: E402
from tables_of_apps import crossarch_table, prune_table, quantize_table  # noqa: E402
from tables_of_measurements import (  # noqa: E402
    clusters_table,
    evidence_table,
    label_table,
    loader_table,
    objectives_table,
    recover_table,
    run_table,
    store_table,
    throughput_table,
)

BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n)(?P<shown>.*?)(<!-- end -->)", re.DOTALL)
OPENING = re.compile(r"^<!-- table: ", re.MULTILINE)
TABLES = {
    "scdd label storage 1": label_table,
    "scdd bn evidence 1": evidence_table,
    "scdd recover throughput 1": recover_table,
    "scdd throughput 1": throughput_table,
    "scdd result 1": run_table,
    "scdd pairs 1": pairs_table,
    "scdd objectives 1": objectives_table,
    "scdd loader throughput 1": loader_table,
    "scdd label store 1": store_table,
    "scdd crossarch 1": crossarch_table,
    "scdd prune 1": prune_table,
    "scdd quantize 1": quantize_table,
    "scdd ablation 1": ablation_table,
    "scdd gpu hours 1": hours_table,
    "scdd clusters 1": clusters_table,
    "scdd scaling 1": scaling_table,
    "scdd study 1": study_table,
}


def documents(root: Path) -> list[Path]:
    """README.md and every page of docs/."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def build(text: str, results: Path, where: str) -> str:
    """Return a document with every marked block made anew.

    Args:
        text: of the document.
        results: the folder of result files.
        where: name of the document, which opens the sentence of an error.

    Raises:
        SystemExit: if a block has no end, or its result is missing, no result, or of a schema that
            no table is made of.
    """
    if len(OPENING.findall(text)) != len(BLOCK.findall(text)):
        raise SystemExit(f"{where}: a block that begins with <!-- table: has no <!-- end -->")

    def block(match: re.Match[str]) -> str:
        path = results / f"{match['name']}.json"
        if not path.exists():
            if not match["shown"].strip():
                return match[0]
            raise SystemExit(
                f"{where}: shows the table {match['name']}, but {path} is missing; measure it "
                "again, or empty the block"
            )
        return f"{match[1]}{build_table(path)}{match[4]}"

    return BLOCK.sub(block, text)


def build_table(path: Path) -> str:
    """The table of a result file.

    Raises:
        SystemExit: if it is none, or no table is made of its schema.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        schema = result["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path}: is no result file ({error!r}); measure it again") from error
    if schema not in TABLES:
        raise SystemExit(
            f"{path}: has the schema {schema!r}, of which no table is made; known: "
            f"{', '.join(sorted(TABLES))}"
        )
    try:
        return TABLES[schema](result)
    except (KeyError, TypeError, IndexError) as error:
        raise SystemExit(
            f"{path}: says {schema!r}, but is not laid out like it ({error!r}); measure it again"
        ) from error


def main(root: Path = ROOT) -> None:
    """Rewrite the documents, or check them."""
    if not set(sys.argv[1:]) <= {"--check"}:
        raise SystemExit(__doc__)
    stale = []
    for path in documents(root):
        text = path.read_text(encoding="utf-8")
        name = str(path.relative_to(root))
        built = build(text, root / "benchmarks" / "results", name)
        if text != built:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(built, encoding="utf-8")
    if stale and "--check" in sys.argv:
        raise SystemExit(f"{', '.join(stale)}: differ from benchmarks/results; run tables.py")


if __name__ == "__main__":
    main()
