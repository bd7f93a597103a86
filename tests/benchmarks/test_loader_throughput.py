"""The measurement of reading: every way shows the same samples, and tables find their numbers."""

import json
import statistics
from pathlib import Path

import pytest
import torch

from benchmarks import loader_throughput as benchmark
from benchmarks.label_store import write_store
from benchmarks.plain_loader import PlainDataset, write_plain
from benchmarks.tables import TABLES
from scdd.distilled import DistilledDataset

TINY = ["--images", "12", "--classes", "3", "--views", "2", "--batch", "5", "--rounds", "2"]


def shown(path: Path, printed: str) -> dict:
    """The result in a file, whose table was printed."""
    result = json.loads(path.read_text())
    assert TABLES[result["schema"]](result) in printed
    return result


@pytest.mark.parametrize("views", benchmark.VIEWS)
def test_the_plain_pipeline_shows_the_same_samples(tmp_path: Path, views: str):
    write_store(tmp_path / "distilled.h5", benchmark.VIEWS[views], 40, 4, 2, 16)
    data = DistilledDataset.open(tmp_path / "distilled.h5")
    write_plain(tmp_path / "plain.h5", data)
    for at_hand in (True, False):
        plain = PlainDataset(tmp_path / "plain.h5", data, 1, at_hand)
        data.set_epoch(1)
        benchmark.check(data, plain)
        data.set_epoch(0)
        with pytest.raises(SystemExit, match="is not the same in both files"):
            benchmark.check(data, plain)


def test_all_ways_are_measured_in_each_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    threads, path = torch.get_num_threads(), tmp_path / "result.json"
    benchmark.main([*TINY, "--size", "8", "--seconds", "0", "--result", str(path)])
    torch.set_num_threads(threads)
    result = shown(path, capsys.readouterr().out)
    assert {"commit", "environment", "config"} <= result.keys() and result["n"] == 2
    assert [row["views"] for row in result["rows"]] == list(benchmark.VIEWS)
    (training,) = result["trainings"]
    for row in (*result["rows"], training):
        plain = row["ways"]["plain"]["samples_per_second"]
        for way in row["ways"].values():
            rates = way["samples_per_second"]
            assert len(rates) == 2 and min(rates) > 0
            ratios = [one / other for one, other in zip(rates, plain, strict=True)]
            assert way["ratio"] == pytest.approx(statistics.median(ratios))
    assert len(training["ways"]) == 3 and len(result["rows"][0]["ways"]) == 5


@pytest.mark.slow
def test_a_large_store_is_measured_in_a_process_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    threads, path = torch.get_num_threads(), tmp_path / "result.json"
    benchmark.main(["--scale", *TINY, "--folder", str(tmp_path), "--result", str(path)])
    torch.set_num_threads(threads)
    result = shown(path, capsys.readouterr().out)
    assert result["bytes"] > 12 * 3 * 32 * 32 and result["peak_bytes"] >= result["imported_bytes"]
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
