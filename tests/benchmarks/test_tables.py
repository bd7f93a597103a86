"""Tables of the documents come from the result files, and what is wrong with one is a sentence."""

import json
import re
import sys
from pathlib import Path

import pytest

from benchmarks import tables

RESULTS = tables.ROOT / "benchmarks" / "results"


def block(name: str, shown: str = "") -> str:
    return f"text\n\n<!-- table: {name} -->\n{shown}<!-- end -->\nmore\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the README, two pages and one result."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    content = (RESULTS / "digits.json").read_text()
    (tmp_path / "benchmarks" / "results" / "digits.json").write_text(content)
    (tmp_path / "README.md").write_text("# no table\n")
    for page in ("a.md", "b.md"):
        (tmp_path / "docs" / page).write_text(block("digits"))
    return tmp_path


def run(root: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["tables.py", *words])
    tables.main(root)


def test_every_page_is_built_and_a_digit_that_differs_is_found(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(SystemExit, match=r"^docs/a.md, docs/b.md: differ from"):
        run(checkout, monkeypatch, "--check")
    run(checkout, monkeypatch)
    run(checkout, monkeypatch, "--check")
    page = checkout / "docs" / "b.md"
    text = page.read_text()
    top1 = json.loads((RESULTS / "digits.json").read_text())["rows"][0]["top1"]
    assert f"{top1:.0f}"[:1] in text
    page.write_text(re.sub(r"(\d)\.(\d)", r"\2.\1", text, count=1))
    with pytest.raises(SystemExit, match=r"^docs/b.md: differ"):
        run(checkout, monkeypatch, "--check")


def test_the_documents_are_the_readme_and_all_pages():
    found = [str(path.relative_to(tables.ROOT)) for path in tables.documents(tables.ROOT)]
    assert found[0] == "README.md" and "docs/benchmarks.md" in found
    assert len(found) == 1 + len(list((tables.ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gone", None, "README.md: shows the table gone, but .*gone.json is missing; measure"),
        ("odd", '{"schema": "scdd odd 7"}', "has the schema 'scdd odd 7', of which no table"),
        ("torn", '{"schema": "scdd re', "torn.json: is no result file"),
        ("list", "[1, 2]", "list.json: is no result file"),
        ("none", "{}", "none.json: is no result file"),
        (
            "hollow",
            '{"schema": "scdd ablation 1"}',
            "hollow.json: says 'scdd ablation 1', but is not laid out like it",
        ),
    ],
)
def test_a_result_that_is_missing_or_of_another_schema_is_named(
    name: str, content: str | None, said: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
):
    (checkout / "README.md").write_text(block(name, "| 1 |\n"))
    if content is not None:
        (checkout / "benchmarks" / "results" / f"{name}.json").write_text(content)
    with pytest.raises(SystemExit, match=said) as caught:
        run(checkout, monkeypatch, "--check")
    assert "\n" not in str(caught.value)


def test_an_empty_block_waits_for_its_result():
    waiting = block("not_measured")
    assert tables.build(waiting, RESULTS, "page") == waiting


def test_a_block_without_an_end_is_not_passed_over():
    with pytest.raises(SystemExit, match=r"^page: a block that begins .* has no <!-- end -->"):
        tables.build("<!-- table: digits -->\n| 1 |\n", RESULTS, "page")


def test_every_result_file_has_a_table():
    for path in RESULTS.glob("*.json"):
        assert tables.build_table(path).startswith("| "), path
