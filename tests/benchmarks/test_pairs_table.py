"""A run of krr_st or boost as a result file, and its table."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.record import record, without_folder
from benchmarks.tables import TABLES
from scdd.distilled import DistilledFile
from scdd.distilled.bill import storage_floats
from tests.apps.test_apps_commands import cells


def test_a_run_is_recorded_and_shown_with_every_number_that_it_had(pair_run: Path, tmp_path: Path):
    run = tmp_path / "secret" / "run"
    shutil.copytree(pair_run, run)
    # The stage was run, and run again.
    judged = [(9.0, 8.0), (4.0, 1.0)]
    lines = [
        {"stage": "condense_pairs", "judged_start": start, "judged_end": end}
        for start, end in judged
    ]
    lines.append({"stage": "condense_pairs", "step": 50, "outer_loss": 7.0})
    lines.append({"stage": "condense_pairs", "explained": [0.5]})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text)
    config = yaml.safe_load((run / "config.yaml").read_text())
    task = config["dataset"] | {"name": "image_folder", "root": "/home/me/birds"}
    config["pretrain"]["transfer"] = [task]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    results = json.loads((run / "results.json").read_text())
    for row in list(results["rows"]):
        results["rows"].append(row | {"task": "birds", "top1": row["top1"] / 2})
    results["tasks"].append(results["tasks"][0] | {"name": "birds", "val_images": 7})
    (run / "results.json").unlink()
    (run / "results.json").write_text(json.dumps(results))

    found = record(run)
    assert "/" not in found["config"]["pretrain"]["transfer"][0]["root"]
    said = json.dumps(found)
    assert str(tmp_path) not in said and "/home" not in said and "secret" not in said
    shown = TABLES[found["schema"]](found)
    table = cells(shown)
    assert [line[0] for line in table] == list(dict.fromkeys(r["arm"] for r in results["rows"]))
    for line in table:
        own = [r["top1"] for r in results["rows"] if (r["arm"], r["task"]) == (line[0], "digits")]
        assert line[2] == f"{np.mean(own):.1f} +- {np.std(own, ddof=1):.1f}"
        half = [score / 2 for score in own]
        assert line[3] == f"{np.mean(half):.1f} +- {np.std(half, ddof=1):.1f}"
    assert "digits, linear probe" in shown and "birds, linear probe" in shown
    assert "Outer loss of new models before 4, after 1 (75 % less)" in shown
    assert "birds: 120 real training and 7 real validation images, 10 classes" in shown
    with DistilledFile(run / "distilled.h5") as file:
        assert f"{storage_floats(file.bill)} numbers" in shown
    assert f"commit {found['commit']}" in shown and "mean +- sd of 2 networks" in shown
    assert found["environment"]["processor"] in shown


@pytest.mark.parametrize(
    ("word", "left"),
    [
        ("/data/mine/birds", "birds"),
        ("dataset.root=/data/mine", "dataset.root=mine"),
        ("pretrain.transfer=[{name: x, root: /data/mine/birds}]", None),
        ('a=[{"root": "/data/birds"}, {"root": "/data/fish"}]', None),
        ("runs/digits", "runs/digits"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("lr=1/2", "lr=1/2"),
    ],
)
def test_of_paths_the_last_part_is_kept_wherever_they_stand(word: str, left: str | None):
    found = without_folder(word)
    assert found == left if left is not None else "/" not in found and "birds" in found
