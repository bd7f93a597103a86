"""The command `scdd`: parses, loads, calls; imports torch inside commands, so help is instant."""

import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Optional

import typer

from scdd.deadline import Deadline
from scdd.errors import ConfigError, OutOfTime, RunError, UserError

app = typer.Typer(
    help="Distil a labelled image dataset into a small synthetic one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigArgument = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(
        help="A YAML file or the name of a preset; default: digits.", show_default=False
    ),
]
DataOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--data", help="An image folder with train/ and val/ class folders."),
]
OutOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--out", help="The run directory; default: runs/<preset>."),
]
SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--set", help="Change a setting: key=value, such as recover.iterations=500."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps ...")]
FileArgument = Annotated[Path, typer.Argument(help="A distilled .h5 file.", show_default=False)]


@app.command()
def distill(
    config: ConfigArgument = None,
    data: DataOption = None,
    out: OutOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    until: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--until", help="Stop after this step."),
    ] = None,
    redo: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--redo", help="Move this step and all after it aside and run them again."),
    ] = None,
    minutes: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            "--minutes",
            help="Save and stop (exit code 3) before so many minutes are over; the same command "
            "goes on.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show steps, FLOPs, sizes and a rough time; run nothing."),
    ] = False,
) -> None:
    """Distil a dataset: squeeze, probe, recover, relabel, posttrain; resumes where it stopped."""
    if minutes is not None and not minutes > 0:
        raise ConfigError(f"--minutes {minutes:g}: wants more than 0")
    # Here, so that the imports count.
    deadline = None if minutes is None else Deadline(60 * minutes)
    from scdd.config.load import find_config, load_config

    changes = list(overrides or [])
    if data is not None:
        _refuse_odd_path(data)
        # Quoted: the value is read as YAML. Whole: a rerun may start in another folder.
        root = json.dumps(str(data.expanduser().absolute()), ensure_ascii=False)
        changes = ["dataset.name=image_folder", f"dataset.root={root}", *changes]
    cfg = load_config(config, changes)
    target = out or Path("runs") / find_config(config).stem
    from scdd.device import resolve_device

    where = resolve_device(device)
    if dry_run:
        from scdd.estimate import estimate
        from scdd.pipeline import plan

        plan(cfg, until, redo)
        print(estimate(cfg, where))
        return
    from scdd import pipeline
    from scdd.progress import say

    say(f"{target}: {cfg.method}, recipe {cfg.recipe}, dataset {cfg.dataset.name}, {where}")
    pipeline.distill(cfg, target, where, until, redo, deadline)


@app.command()
def presets(
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="Show this preset.", show_default=False),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="With every default filled in.")] = False,
) -> None:
    """List the presets, or show one."""
    from scdd.config.load import find_config, load_config, preset_names, read_yaml

    if name is None:
        for preset in preset_names():
            print(f"{preset:<24} {read_yaml(find_config(preset)).get('summary', '')}")
    elif full:
        import yaml

        print(yaml.safe_dump(load_config(name).model_dump(mode="json"), sort_keys=False), end="")
    else:
        print(find_config(name).read_text(encoding="utf-8"), end="")


@app.command()
def checkpoints() -> None:
    """List public checkpoints that squeeze.checkpoint can take instead of training."""
    from scdd.config.known_checkpoints import listing

    print(listing())


@app.command()
def inspect(
    file: FileArgument,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also read everything and check every digest.")
    ] = False,
    teacher: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(
            "--teacher",
            help="Also label some views again with these weights (of each, where several label) "
            "and compare.",
        ),
    ] = None,
) -> None:
    """Show what a distilled file holds."""
    from scdd.inspection import describe

    print(describe(file, verify, teacher or ()))


@app.command()
def evaluate(
    file: FileArgument,
    arch: Annotated[str, typer.Option("--arch", help="The student to train on the file.")],
    data: DataOption = None,
    labels: Annotated[str, typer.Option("--labels", help="soft or hard.")] = "soft",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Students to train.")] = 1,
    recipe: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--recipe",
            help="A YAML file or the name of a preset, whose posttrain section says how; default: "
            "that of the run.",
        ),
    ] = None,
    overrides: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="Change the training: key=value, such as epochs=100."),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a student on a distilled file and score it on real validation images."""
    from scdd.device import resolve_device
    from scdd.evaluation import evaluate_file

    where = resolve_device(device)
    print(evaluate_file(file, arch, data, labels, seeds, overrides or [], where, recipe))


@app.command()
def export(
    file: FileArgument,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="imagefolder, parquet, or (of representations) dense.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    with_file: Annotated[
        bool, typer.Option("--with-file", help="Copy FILE beside, with soft labels and views.")
    ] = False,
) -> None:
    """Write the images of a distilled file for other tools, with a dataset card."""
    from scdd.exchange import export_file

    print(export_file(file, form, out, with_file))


@app.command("import")
def import_images(
    folder: Annotated[
        Path, typer.Argument(help="A folder with a folder of images per class.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The distilled file to make.")],
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--data", help="The real images: names, order and statistics."),
    ] = None,
    size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--size", min=8, max=1024, help="Side in pixels to resize images to."),
    ] = None,
    method: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--method", help="Which method made the images; default: imported."),
    ] = None,
    teacher: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--teacher", help="A teacher.safetensors of a run, for soft labels."),
    ] = None,
    overrides: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="Change the labelling: relabel.views=50, for instance."),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Make a distilled file of images in class folders, such as those of other methods."""
    from scdd.device import resolve_device
    from scdd.exchange import import_folder

    where = resolve_device(device)
    print(import_folder(folder, out, data, size, method, teacher, overrides or [], where))


@app.command()
def stats(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT", help="Weights of networks with BatchNorm.", show_default=False
        ),
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="Also write bn_stats.csv and bn_stats.png into this folder."),
    ] = None,
) -> None:
    """Show how BatchNorm statistics vary across channels, for checkpoints side by side."""
    from scdd.bn_comparison import compare_checkpoints

    print(compare_checkpoints(checkpoints, out))


KEPT = "stopped: what is finished is kept, and the same command goes on from there"
STOPPED = {"distill": f"{KEPT} (without --redo)", "crossarch": KEPT, "prune": KEPT}
"""By command, where it keeps what is finished."""
STOPPED_SHORT = "stopped: the command begins anew next time; files it writes are whole or not there"
OUT_OF_TIME, INTERRUPTED, TERMINATED = 3, 130, 143


class Terminated(BaseException):
    """SIGTERM; not a KeyboardInterrupt, which typer would catch."""


def main() -> None:
    """Run the command line; every foreseen error is one sentence."""
    run(app)


def run(application: Callable[..., Any]) -> None:
    """Run a typer application with the suite's exit codes (also used by scdd-apps).

    0; 2 for a UserError; 1 for a RunError or a bug; 3 when the time that was given is over; 130 and
    143 after Ctrl-C and SIGTERM.
    """
    # Idle OpenMP threads would spin and starve small tensors; read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _terminate)
    _open_streams()
    with _sentences():
        if application(standalone_mode=False) == INTERRUPTED:
            raise KeyboardInterrupt  # Newer typers make a return value of it, older ones an Abort.


@contextmanager
def _sentences() -> Iterator[None]:
    # ClickException of the click that typer stands on, which newer typers bring themselves.
    usage_error: Any = typer.BadParameter.__mro__[2]
    try:
        yield
        sys.stdout.flush()  # A reader that has gone is noticed here, not while Python shuts down.
    except UserError as error:
        _fail(f"error: {error}", 2)
    except RunError as error:
        _fail(f"error: {error}", 1)
    except OutOfTime as stop:
        _fail(f"stopped: {stop} (without --redo)", OUT_OF_TIME)
    except (KeyboardInterrupt, typer.Abort):
        _fail(_stopped(), INTERRUPTED)
    except Terminated:
        _fail(_stopped(), TERMINATED)
    except usage_error as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        _silence()
        sys.exit(1)
    except OSError as error:
        _silence()
        reason = error.strerror or str(error)
        if error.filename is None:
            _fail(f"error: what is printed or read cannot pass ({reason}); check the disk", 1)
        _fail(f"error: {error.filename}: {reason}; check that it is there and may be written", 1)


def _stopped() -> str:
    return STOPPED.get(next(iter(sys.argv[1:]), ""), STOPPED_SHORT)


def _open_streams() -> None:
    """Make printing safe where a stream is closed, or cannot show every letter."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (for the whole process)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _silence() -> None:
    """Keep Python from failing again when it flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse_odd_path(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"--data {os.fsencode(path)!r}: the name is not valid UTF-8; rename or link it"
        ) from None


def _fail(sentence: str, code: int) -> None:
    print(sentence, file=sys.stderr)
    sys.exit(code)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
