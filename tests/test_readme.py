"""The README tells the truth: its tables, presets, links and options are those of the code."""

import json
import re
import subprocess
import sys
from pathlib import Path

from scdd.config.load import preset_names

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_table_is_built_from_the_result_files():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_every_result_file_says_how_it_was_measured():
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        result = json.loads(path.read_text())
        assert {"schema", "commit", "environment", "n", "config"} <= result.keys(), path
        assert {"command", "processor", "versions"} <= result["environment"].keys(), path


def test_the_table_of_presets_names_each_preset_that_is_shipped():
    named = set(re.findall(r"`([a-z0-9_]+)`", _section("Your own images")))
    assert set(preset_names()) <= named


def test_local_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_every_option_of_the_command_lines_shown_is_known(scdd_command, apps_command):
    for line in re.findall(r"^    .*?\b((?:scdd|scdd-apps) .*)$", README, re.MULTILINE):
        program, command, *rest = line.split("#")[0].split()
        ask = scdd_command if program == "scdd" else apps_command
        known = ask(command, "--help").stdout
        for word in rest:
            if word.startswith("--"):
                assert word in known, line


def _section(title: str) -> str:
    return README.split(f"## {title}")[1].split("\n## ")[0]
