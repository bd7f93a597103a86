"""The dataset card: what it says, and that no text of a file can break out of it."""

import dataclasses
import hashlib
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from scdd.distilled import DistilledDataset
from scdd.exchange.dataset_card import code, dataset_card
from tests import tiny_run
from tests.cli.conftest import Run
from tests.conftest import FinishedRun
from tests.distilled.conftest import make_content
from tests.exchange.conftest import awkward

HOSTILE = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30),
    st.sampled_from(["`", "``", "a`", "` `", "---", "\n---\n", "[a](b)", "<b>", "|", "# a", " "]),
)


def parsed(card: str) -> tuple[dict, list[Token]]:
    """The front matter and the tokens of what follows it, inline ones among them."""
    start, front, text = card.split("---\n", 2)
    assert start == ""
    flat = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        flat += [token, *(token.children or [])]
    return yaml.safe_load(front), flat


@given(HOSTILE)
def test_a_text_in_a_code_span_is_one_code_span(text: str):
    tokens = parsed(f"---\n---\n- x: {code(text)}, y\n")[1]
    spans = [token.content for token in tokens if token.type == "code_inline"]
    assert len(spans) == 1
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    assert spans[0].strip() == shown.strip()
    others = {token.type for token in tokens if token.nesting == 0} - {"inline"}
    assert others == {"text", "code_inline"}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> DistilledDataset:
    path = tmp_path_factory.mktemp("card") / "d.h5"
    awkward().write(path)
    return DistilledDataset.open(path)


@settings(max_examples=30)
@given(HOSTILE, HOSTILE, st.lists(HOSTILE, min_size=12, max_size=12))
def test_no_text_changes_the_structure_of_the_card(
    opened: DistilledDataset, dataset: str, method: str, names: list[str]
):
    def structure(data: DistilledDataset) -> tuple[list[str], list[str]]:
        front, tokens = parsed(dataset_card(data, None, "imagefolder", ["distilled.h5"], []))
        return list(front), [token.type for token in tokens]

    plain = {"dataset": "d", "method": "m", "class_names": ("x",) * 12}
    stranger = {"dataset": dataset, "method": method, "class_names": tuple(names)}
    opened.header = dataclasses.replace(opened.header, **plain)
    wanted = structure(opened)
    opened.header = dataclasses.replace(opened.header, **stranger)
    assert structure(opened) == wanted


def test_the_card_of_a_hostile_file_shows_it_and_obeys_nothing(warm_command: Run, tmp_path: Path):
    awkward().write(tmp_path / "d.h5")
    done = warm_command("export", "d.h5", "--format", "imagefolder", "--out", "out")
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert all(letter.isprintable() or letter == "\n" for letter in card)
    front, tokens = parsed(card)
    assert front["license"] == "unknown"
    assert front["size_categories"] == ["n<1K"]
    assert front["task_categories"] == ["image-classification"]
    assert front["pretty_name"].startswith("d\ufffd---\ufffd# <b>`x distilled by")
    types = {token.type for token in tokens}
    assert not types & {"html_inline", "html_block", "link_open", "image", "hr"}
    headings = [tokens[at + 1].content for at, t in enumerate(tokens) if t.type == "heading_open"]
    assert headings[1:] == ["Labels", "Scores", "Loading", "Classes"]
    shown = [token.content for token in tokens if token.type == "code_inline"]
    assert "../../etc/passwd" in shown and "\ufffd[31mred\ufffd" in shown
    assert "Not scored" in card and "no soft labels" in card


def test_in_a_finished_run_the_card_has_its_scores_and_baselines(
    warm_command: Run, finished_run: FinishedRun, tmp_path: Path
):
    for name, row in (("distilled", "distilled"), ("random_real", "random real")):
        file = finished_run.path / f"{name}.h5"
        done = warm_command("export", file, "--format", "imagefolder", "--out", name)
        assert done.returncode == 0, done.stderr
        card = (tmp_path / name / "README.md").read_text()
        weights = (finished_run.path / "probe" / "teacher.safetensors").read_bytes()
        assert f"is the row *{row}*" in card
        for words in (
            f"SHA-256 of the weights file `{hashlib.sha256(weights).hexdigest()}`",
            f"Digest of the distilled file: `{tiny_run.digest(file)}`",
            "student resnet8, 12 epochs = 24 steps of batch 10",
            "2 per class",
            "the teacher's logits on 4 stored views of each image (crop, cutmix)",
        ):
            assert words in card
        tables = [line.strip("| ").split(" | ") for line in card.splitlines() if line[:1] == "|"]
        cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in tables[2:]}
        for score in tiny_run.scores(finished_run.path):
            column = {"soft": 1, "hard": 2}[score["labels"]]
            assert cells[score["arm"]][column] == f"{score['top1']:.1f}"


@pytest.mark.parametrize(
    ("codec", "said"),
    [
        ("full", "stored as full, are the teacher's logits on 4 stored views"),
        ("int8", "stored as int8, are the teacher's logits on 4 stored views"),
        ("hard", "For training on classes there are 4 stored views"),
        ("teacher", "what the teacher says of 4 stored views"),
    ],
)
def test_the_card_says_how_labels_are_stored_and_where(
    codec: str, said: str, warm_command: Run, tmp_path: Path
):
    """Weights that lie beside by chance are nobody's business."""
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "teacher.safetensors").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    for right in (True, False):
        about = {"teacher": {"weights": digest if right else "0"}}
        make_content(codec=codec, about=about).write(folder / "d.h5")
        out = tmp_path / str(right)
        done = warm_command(
            *["export", folder / "d.h5", "--format", "imagefolder", "--out", out, "--with-file"]
        )
        assert done.returncode == 0, done.stderr
        card = (out / "README.md").read_text()
        assert said in card and "Views are in `distilled.h5`" in card
        copied = codec == "teacher" and right
        assert (out / "teacher.safetensors").exists() is copied
        assert ("weights are in `teacher.safetensors`" in card) is copied


def test_a_file_that_the_run_has_not_scored_has_no_scores(
    warm_command: Run, copied_run: Path, tmp_path: Path
):
    shutil.copy(copied_run / "random_real.h5", copied_run / "mine.h5")
    (copied_run / "distilled.h5").unlink()
    shutil.copy(copied_run / "real_start.h5", copied_run / "distilled.h5")
    for number, file in enumerate(["mine.h5", "distilled.h5", "recover/images.h5"]):
        out = str(number)
        done = warm_command("export", copied_run / file, "--format", "imagefolder", "--out", out)
        assert done.returncode == 0, done.stderr
        assert "Not scored" in (tmp_path / out / "README.md").read_text()


@pytest.mark.parametrize("content", ["{", '{"rows": [{"arm": 3}], "val_images": 3}'])
def test_damaged_results_are_one_sentence(content: str, warm_command: Run, copied_run: Path):
    (copied_run / "results.json").write_text(content)
    file = copied_run / "distilled.h5"
    done = warm_command("export", file, "--format", "imagefolder", "--out", "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "results.json: is damaged; make it again with --redo posttrain" in done.stderr
