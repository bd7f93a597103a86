"""Exponents of growth against power laws, and a small measurement by real runs."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import scaling
from benchmarks.tables import build_table
from scdd.config.load import check
from scdd.datasets import load_dataset
from scdd.errors import ConfigError
from scdd.pipeline import plan


@given(st.floats(0.01, 100), st.floats(-1.5, 2.5))
def test_the_exponent_of_a_power_law_is_its_power(factor: float, power: float):
    sizes = [4, 8, 16, 32]
    seconds = [factor * size**power for size in sizes]
    assert scaling.exponent(sizes, seconds) == pytest.approx(power, abs=1e-9)


@given(st.floats(0, 100), st.floats(0.1, 10))
def test_without_the_fixed_cost_a_line_has_the_exponent_1(fixed: float, slope: float):
    sizes = [25, 50, 100, 200]
    seconds = [fixed + slope * size for size in sizes]
    left = scaling.without_fixed(sizes, seconds)
    assert scaling.exponent(sizes, left) == pytest.approx(1, abs=1e-6)
    assert scaling.exponent(sizes, seconds) <= 1 + 1e-9


def test_what_is_not_defined_is_not_a_number():
    assert scaling.exponent([4], [1.0]) is None
    assert scaling.exponent([4, 8], [0.0, 1.0]) is None
    assert scaling.without_fixed([1, 2], [3.0, 9.0]) == [3.0, 9.0]  # It would be less than none.


@pytest.mark.parametrize("name", scaling.AXES)
def test_every_point_can_be_run(name: str, tmp_path: Path):
    axis = scaling.AXES[name]
    for size in axis.sizes[:2]:
        data = tmp_path / f"{size}"
        scaling.write_images(data, axis.classes(size), 8)
        cfg = check(scaling.settings(data, axis.changes(size, 1)), name)
        dataset = load_dataset(cfg.dataset)
        assert len(dataset.train) == 8 * axis.classes(size) and axis.images(size) >= cfg.ipc
        steps, _ = plan(cfg)
        assert {*axis.steps} <= {step.name for step in steps}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ranks"], "ranks: no such axis; axes: images, classes"),
        (["--rounds", "0"], "--rounds and --factor must be 1 or more"),
        (["views", "--device", "cuda:55"], "--device cuda:55: cannot be used"),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(words: list[str], said: str, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        scaling.main([*words, "--scratch", str(tmp_path / "new")])
    assert said in str(caught.value) and not (tmp_path / "new").exists()


@pytest.mark.slow
def test_two_axes_are_measured_drawn_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, sizes in (("views", (2, 8)), ("processes", (1, 2))):
        monkeypatch.setitem(scaling.AXES, name, scaling.AXES[name]._replace(sizes=sizes))
    out, picture = tmp_path / "scaling.json", tmp_path / "scaling.png"
    words = ["views", "processes", "--rounds", "1", "--scratch", str(tmp_path / "scratch")]
    words += ["--out", str(out), "--plot", str(picture)]
    scaling.main(words)
    result = json.loads(out.read_text())
    assert [(row["axis"], row["step"]) for row in result["rows"]] == [
        ("views", "relabel"),
        *(("processes", step) for step in scaling.AXES["processes"].steps),
    ]
    assert all(min(map(min, row["seconds"])) > 0 for row in result["rows"])
    assert picture.read_bytes().startswith(b"\x89PNG") and build_table(out)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("measured.json")}
    scaling.main(words)
    assert {path: path.stat().st_mtime_ns for path in before} == before and len(before) == 4
