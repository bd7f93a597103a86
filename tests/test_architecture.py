"""Who may import whom, and what must not exist, read from the source with `ast`."""

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"scdd": ROOT / "scdd", "scdd_apps": ROOT / "apps" / "scdd_apps"}

# Every module has a place here; a name stands for a module and all below it. Imports go down, or to
# a peer in the same layer as long as that makes no circle.
LAYERS: dict[str, tuple[str, ...]] = {
    "commands": ("cli", "__init__", "__main__"),
    "answers": ("bn_comparison", "estimate", "evaluation", "exchange", "inspection"),
    "pipeline": ("method_steps", "pipeline", "step_identity"),
    "steps": ("network_checks", "report", "report_pairs", "steps"),
    "stages": ("stages",),
    "subjects": (
        "bilevel",
        "bn_plots",
        "companions",
        "coresets",
        "datasets",
        "distilled",
        "foreign",
        "gallery",
        "models",
        "objectives",
        "posttraining",
        "probing",
        "recovery",
    ),
    "tools": (
        "augment",
        "bn_report",
        "bn_statistics",
        "checkpoint",
        "compiling",
        "distributed",
        "divergence",
        "preflight",
        "run",
        "synced_batchnorm",
        "training",
    ),
    "ground": (
        "config",
        "deadline",
        "device",
        "errors",
        "files",
        "progress",
        "seeding",
        "tables",
    ),
}
ORDER = list(LAYERS)

# The same for the applications; `*` matches within the first name below scdd_apps.
APP_LAYERS: dict[str, tuple[str, ...]] = {
    "commands": ("cli", "__init__", "__main__"),
    "deployment": ("export", "quantize"),
    "trained": ("networks", "onnx_graphs"),
    "apps": ("crossarch", "prune"),
    "shared": ("extras", "files", "report*"),
}
APP_ORDER = list(APP_LAYERS)

FORBIDDEN_FILES = {"utils.py", "helpers.py", "common.py", "misc.py"}


def place(module: str) -> tuple[str, str] | None:
    """Return (package, layer) of a dotted module name, or None if no table names it."""
    package, _, rest = module.partition(".")
    first = rest.split(".")[0] or "__init__"
    for layer, names in (LAYERS if package == "scdd" else APP_LAYERS).items():
        if any(fnmatchcase(first, name) for name in names):
            return package, layer
    return None


def broken_rule(importer: str, target: str) -> str | None:
    """Return the rule that `importer` importing `target` breaks, in words, or None."""
    source, aim = place(importer), place(target)
    if source is None or aim is None:
        return None  # the test of the tables speaks of it
    if source[0] == "scdd" and aim[0] == "scdd_apps":
        return "scdd never imports scdd_apps"
    if source[0] == "scdd":
        if ORDER.index(source[1]) > ORDER.index(aim[1]):
            return f"{source[1]} is below {aim[1]}"
        if source[1] == aim[1] == "stages" and unit(importer) != unit(target):
            return "stages never import stages, they meet through artefacts"
    elif source[1] == "commands":
        return None
    elif aim[0] == "scdd":
        if ORDER.index(aim[1]) < ORDER.index("stages"):
            return f"apps use scdd up to stages, and {target} is above"
    elif APP_ORDER.index(source[1]) > APP_ORDER.index(aim[1]):
        return f"{source[1]} is below {aim[1]}"
    elif {source[1], aim[1]} <= {"apps", "deployment"} and unit(importer) != unit(target):
        return "apps never import apps"
    return None


def unit(module: str) -> str:
    """Return the stage or app a module belongs to: `scdd.stages.x.y` is part of `scdd.stages.x`."""
    return ".".join(module.split(".")[: 3 if module.startswith("scdd.stages") else 2])


def python_files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def modules(packages: dict[str, Path]) -> dict[str, Path]:
    """Return {dotted name: file} of all modules; a package's name stands for its __init__.py."""
    found = {}
    for package, folder in packages.items():
        for path in python_files(folder):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """Yield (module, line) for each import of one of our modules, inside functions too."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            # `from scdd import models` names a module, `from scdd.models import x` what is in one.
            targets = [
                full if (full := f"{base}.{alias.name}") in known else base
                for alias in node.names
                if (base, alias.name) != ("scdd", "__version__")  # anyone may know the version
            ]
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"}:
            targets = [
                str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)
            ]
        else:
            continue
        for target in dict.fromkeys(targets):
            if target.split(".")[0] in PACKAGES:
                yield target, node.lineno


def import_faults(packages: dict[str, Path]) -> list[str]:
    """Return one sentence for each import that goes against the layers, and for a circle."""
    known = modules(packages)
    faults = []
    graph: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        for target, line in imports(name, path, known):
            if rule := broken_rule(name, target):
                faults.append(f"{path}:{line}: {name} imports {target}, but {rule}")
            if target != name:
                graph[name].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        faults.append("modules import each other in a circle: " + " <- ".join(error.args[1]))
    return faults


def _called(node: ast.Call) -> str:
    function = node.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _calls_cuda(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "cuda"
    )


def _passes(argument: str, value: bool) -> Callable[[ast.AST], bool]:
    def found(node: ast.AST) -> bool:
        return (
            isinstance(node, ast.keyword)
            and node.arg == argument
            and isinstance(node.value, ast.Constant)
            and node.value.value is value
        )

    return found


def _imports_pickle(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[0] == "pickle" for alias in node.names)
    # The exception is what torch.load raises for a foreign file; to catch it runs no code.
    return (
        isinstance(node, ast.ImportFrom)
        and node.module == "pickle"
        and any(alias.name != "UnpicklingError" for alias in node.names)
    )


def _silences_all_warnings(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and _called(node) in {"filterwarnings", "simplefilter"}
        and len(node.args) == 1
        and not node.keywords
        and isinstance(node.args[0], ast.Constant)
        and node.args[0].value == "ignore"
    )


REFUSED: dict[str, Callable[[ast.AST], bool]] = {
    "`.cuda()` (use the device that was given)": _calls_cuda,
    "`weights_only=False` (a checkpoint must not run code)": _passes("weights_only", False),
    "`allow_pickle=True` (a data file must not run code)": _passes("allow_pickle", True),
    "pickle (a file must not run code)": _imports_pickle,
    "NotImplementedError (leave it out until it exists)": lambda node: (
        isinstance(node, ast.Name) and node.id == "NotImplementedError"
    ),
    "a Trainer class (training is functions)": lambda node: (
        isinstance(node, ast.ClassDef) and node.name.endswith("Trainer")
    ),
    "a filter for all warnings (name the one you mean)": _silences_all_warnings,
}


def refused(path: Path) -> list[str]:
    """Return one sentence for each construct in a file that this project does without."""
    return [
        f"{path}:{getattr(node, 'lineno', '?')}: {what}"
        for node in ast.walk(parse(path))
        for what, matches in REFUSED.items()
        if matches(node)
    ]


def test_every_module_has_a_place_in_the_layers():
    homeless = [name for name in modules(PACKAGES) if place(name) is None]
    assert not homeless, (
        f"{', '.join(homeless)}: no layer; add the name to LAYERS or APP_LAYERS in {__file__}, "
        "as low as what it imports allows"
    )


def test_imports_go_down_the_layers_and_never_in_a_circle():
    faults = import_faults(PACKAGES)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("importer", "target", "allowed"),
    [
        ("scdd.cli", "scdd.pipeline", True),
        ("scdd.pipeline", "scdd.stages.recover", True),
        ("scdd.stages.recover", "scdd.bn_statistics", True),
        ("scdd.models.resnet", "scdd.objectives.moco_v2", True),
        ("scdd.models.resnet", "scdd.stages.recover", False),
        ("scdd.stages.recover", "scdd.stages.relabel", False),
        ("scdd.stages.recover", "scdd.stages.recover.views", True),
        ("scdd.errors", "scdd.checkpoint", False),
        ("scdd.run", "scdd.pipeline", False),
        ("scdd.run", "scdd", False),
        ("scdd.cli", "scdd_apps.prune", False),
        ("scdd_apps.prune", "scdd.stages.posttrain", True),
        ("scdd_apps.prune", "scdd.pipeline", False),
        ("scdd_apps.prune", "scdd_apps.quantize", False),
        ("scdd_apps.quantize", "scdd_apps.prune", False),
        ("scdd_apps.quantize", "scdd_apps.export", False),
        ("scdd_apps.networks", "scdd_apps.prune", True),
        ("scdd_apps.prune", "scdd_apps.prune.channels", True),
        ("scdd_apps.prune", "scdd_apps.report_tables", True),
        ("scdd_apps.report", "scdd_apps.prune", False),
        ("scdd_apps.cli", "scdd_apps.prune", True),
    ],
)
def test_the_layer_rule_says_of_an_import(importer: str, target: str, allowed: bool):
    assert (broken_rule(importer, target) is None) is allowed


def test_wrong_imports_are_found_however_they_are_written(tmp_path: Path):
    sources = {
        "__init__.py": "",
        "errors.py": "def late():\n    from scdd import run\n",
        "run.py": "from scdd import __version__\n",
        "checkpoint.py": "import importlib\nimportlib.import_module('scdd.pipeline')\n",
        "pipeline.py": "",
        "models/__init__.py": "from .resnet import block\n",
        "models/resnet.py": "from scdd.models import norm, stem\nfrom ..cli import main\n",
        "models/norm.py": "import torch\n",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = [fault.partition(": ")[2] for fault in import_faults({"scdd": tmp_path})]
    assert found[:3] == [
        "scdd.checkpoint imports scdd.pipeline, but tools is below pipeline",
        "scdd.errors imports scdd.run, but ground is below tools",
        "scdd.models.resnet imports scdd.cli, but subjects is below commands",
    ]
    assert len(found) == 4 and "circle" in import_faults({"scdd": tmp_path})[3]


def test_nothing_that_the_project_refuses_is_in_the_code():
    found = [
        sentence
        for path in python_files(*PACKAGES.values(), ROOT / "benchmarks")
        for sentence in refused(path)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "model.cuda()",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "import pickle",
        "from pickle import loads",
        "raise NotImplementedError",
        "class Trainer: ...",
        "warnings.filterwarnings('ignore')",
    ],
)
def test_refused_code_is_recognised(line: str, tmp_path: Path):
    path = tmp_path / "planted.py"
    path.write_text(line + "\n")
    assert len(refused(path)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "torch.cuda.is_available()",
        "torch.load(path, weights_only=True)",
        "warnings.filterwarnings('ignore', category=UserWarning)",
        "device = torch.device('cuda')",
        "from pickle import UnpicklingError",
    ],
)
def test_code_that_only_looks_like_refused_code_passes(line: str, tmp_path: Path):
    path = tmp_path / "planted.py"
    path.write_text(line + "\n")
    assert refused(path) == []


def test_no_file_has_a_name_that_says_nothing():
    folders = (*PACKAGES.values(), ROOT / "benchmarks", ROOT / "tests")
    found = [str(path) for path in python_files(*folders) if path.name in FORBIDDEN_FILES]
    assert not found, f"{', '.join(found)}: name the file after the concept it holds"


def test_the_command_line_and_the_configuration_are_importable_without_torch():
    known = modules(PACKAGES)
    light = {"scdd", "scdd.cli", "scdd_apps", "scdd_apps.cli"}
    names = [name for name in known if name in light or name.startswith("scdd.config")]
    check = "\n".join(
        [
            "import importlib, sys",
            f"for name in {names}:",
            "    importlib.import_module(name)",
            "    if 'torch' in sys.modules:",
            "        sys.exit(f'importing {name} imports torch')",
        ]
    )
    child = subprocess.run(
        [sys.executable, "-c", check],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "apps")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
