"""What is declared and what is shipped: the dependencies of pyproject.toml and the wheel."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Import names that differ from the distribution, and what a declared one brings along.
IMPORT_NAMES = {"pyyaml": "yaml", "scikit-learn": "sklearn", "torch-pruning": "torch_pruning"}
BROUGHT = {"click": "typer", "numpy": "torchvision", "PIL": "torchvision", "rich": "typer"} | {
    "safetensors": "timm",
    "scipy": "scikit-learn",
}


def declared(requirements: list[str]) -> set[str]:
    """Return the distributions that a list of requirement lines names."""
    return {re.split(r"[<>=~!\[; ]", line)[0].lower() for line in requirements}


def imported(*folders: Path) -> dict[str, Path]:
    """Return {top-level name: a file that imports it} of all third-party imports."""
    found: dict[str, Path] = {}
    for path in (file for folder in folders for file in sorted(folder.rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            else:
                continue
            found |= {name.split(".")[0]: path for name in names}
    ours = {"scdd", "scdd_apps"}
    return {
        name: path for name, path in found.items() if name not in sys.stdlib_module_names | ours
    }


def test_every_library_the_code_imports_is_declared():
    user = declared(PROJECT["dependencies"])
    assert set(BROUGHT.values()) <= user
    extras = PROJECT["optional-dependencies"]
    optional = declared(extras["export"] + extras["track"])
    known = {IMPORT_NAMES.get(name, name) for name in user | optional} | set(BROUGHT)
    used = imported(ROOT / "scdd", ROOT / "apps")
    missing = [f"{path}: {name}" for name, path in used.items() if name not in known]
    assert not missing, "\n".join(["imported, but not in pyproject.toml:", *missing])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel from this checkout, without network, and open it."""
    for tool in ("hatchling", "pip"):
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"{tool} is not installed; it comes with the [dev] extra")
    folder = tmp_path_factory.mktemp("wheel")
    build = ["pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    result = subprocess.run(
        [sys.executable, "-m", *build, str(ROOT)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = folder.glob("scdd-*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.slow
def test_the_wheel_holds_both_packages_and_every_preset_and_nothing_else(wheel: zipfile.ZipFile):
    shipped = set(wheel.namelist())
    sources = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in (("scdd", ROOT / "scdd"), ("scdd_apps", ROOT / "apps/scdd_apps"))
        for path in folder.rglob("*.py")
    }
    presets = {f"scdd/presets/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    assert presets, "configs/ holds no preset"
    assert sources | presets <= shipped
    tops = {name.split("/")[0] for name in shipped}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"scdd", "scdd_apps"}


@pytest.mark.slow
def test_the_wheel_offers_both_commands_and_carries_the_licence(wheel: zipfile.ZipFile):
    (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    commands = wheel.read(f"{info}/entry_points.txt").decode()
    assert "scdd = scdd.cli:main" in commands
    assert "scdd-apps = scdd_apps.cli:main" in commands
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
