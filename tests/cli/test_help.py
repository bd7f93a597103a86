"""Help and presets: answered at once, without torch."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scdd.config.load import load_config, preset_names, presets_dir
from tests.cli.conftest import Run
from tests.conftest import Command, child_environment


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["distill", "--help"],
        ["evaluate", "--help"],
        ["export", "--help"],
        ["import", "--help"],
        ["stats", "--help"],
        ["presets"],
        ["presets", "digits"],
        ["presets", "digits", "--full"],
        ["checkpoints"],
    ],
    ids=" ".join,
)
def test_help_and_presets_answer_without_torch(arguments: list[str], tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "scdd", *arguments],
        env=child_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = re.findall(r"^import time:.*\|\s+(\S+)$", done.stderr, re.MULTILINE)
    assert "scdd.cli" in imported and done.stdout
    heavy = {"torch", "torchvision", "timm", "h5py", "sklearn", "matplotlib", "numpy"}
    assert heavy & set(imported) == set()


def test_the_options_of_the_contract_are_there(scdd_command: Command):
    shown = scdd_command("distill", "--help").stdout
    for option in (
        "--data",
        "--out",
        "--set",
        "--device",
        "--until",
        "--redo",
        "--dry-run",
        "--minutes",
    ):
        assert option in shown
    assert "--verify" in scdd_command("inspect", "--help").stdout
    assert "--arch" in scdd_command("evaluate", "--help").stdout


def test_presets_are_listed_shown_and_written_out(warm_command: Run, tmp_path: Path):
    listed = warm_command("presets").stdout.splitlines()
    assert [line.split()[0] for line in listed] == preset_names()
    for name, line in zip(preset_names(), listed, strict=True):
        assert line.endswith(load_config(name).summary)
        shown = warm_command("presets", name).stdout
        assert shown == (presets_dir() / f"{name}.yaml").read_text(encoding="utf-8")
    full = tmp_path / "full.yaml"
    full.write_text(warm_command("presets", "digits", "--full").stdout)
    assert load_config(str(full)) == load_config("digits")
    assert yaml.safe_load(full.read_text())["squeeze"]["knn_k"] == 20, "defaults are filled in"
