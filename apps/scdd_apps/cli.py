"""The command `scdd-apps`: parses, loads, calls. torch is imported inside commands."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from scdd.cli import run

app = typer.Typer(
    help="Put a distilled file to work.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

FileArgument = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Argument(
        help="A distilled .h5 file; default: the newest distilled.h5 under runs/.",
        show_default=False,
    ),
]
ModelArgument = Annotated[
    Path,
    typer.Argument(
        help="A network of a run (teacher.safetensors) or of scdd-apps prune.", show_default=False
    ),
]
DataOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--data",
        help="An image folder with val/ class folders, to score on (and train/, to probe on).",
    ),
]
BaselineOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--baseline", help="Another distilled file to compare with."),
]
BaselinesOption = Annotated[
    bool,
    typer.Option("--baselines", help="Compare with random_real.h5 beside FILE."),
]
SeedsOption = Annotated[int, typer.Option("--seeds", min=1, max=1000, help="Networks per row.")]
EpochsOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--epochs",
        min=1,
        max=1_000_000,
        help="Passes over the file; default: see the printed plan.",
    ),
]
SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--set", help="Change the training: key=value, such as lr=0.001."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps ...")]


@app.command()
def crossarch(
    file: FileArgument = None,
    arch: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--arch", help="Repeatable; default: a net of each of six families."),
    ] = None,
    seeds: SeedsOption = 1,
    tuning: Annotated[
        str,
        typer.Option(
            "--tuning",
            help="shared: the run's own training for all; per-arch: with what a net needs beyond.",
        ),
    ] = "per-arch",
    baselines: BaselinesOption = False,
    baseline: BaselineOption = None,
    data: DataOption = None,
    epochs: EpochsOption = None,
    labels: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--labels", help="soft or hard; repeatable; default: soft."),
    ] = None,
    finetune: Annotated[
        bool,
        typer.Option(
            "--finetune",
            help="On representations: beside the linear probe, train all weights on real images.",
        ),
    ] = False,
    recipe: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--recipe",
            help="A YAML file or the name of a preset that says how to train; default: that of "
            "the run.",
        ),
    ] = None,
    overrides: SetOption = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="Where results go; default: crossarch/ beside FILE."),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Train several architectures on the file alone and compare them on real images."""
    from scdd.device import resolve_device
    from scdd_apps.crossarch.comparison import compare
    from scdd_apps.crossarch.options import Options
    from scdd_apps.files import find_inputs

    where = resolve_device(device)
    inputs = find_inputs(
        file, data, baseline, baselines, out, "crossarch", represented=True, recipe=recipe
    )
    options = Options(arch, seeds, tuning, epochs, labels, finetune, overrides or [])
    compare(inputs, options, where)


@app.command()
def prune(
    file: FileArgument = None,
    arch: Annotated[str, typer.Option("--arch", help="The network to prune.")] = "vgg11",
    ratio: Annotated[
        Optional[list[float]],  # noqa: UP045
        typer.Option("--ratio", help="Share of channels to remove; repeatable; default: 0.5."),
    ] = None,
    seeds: SeedsOption = 1,
    baselines: BaselinesOption = False,
    baseline: BaselineOption = None,
    data: DataOption = None,
    epochs: EpochsOption = None,
    variant: Annotated[
        str,
        typer.Option(
            "--variant",
            help="synth: all on the file; checkpoint: prune --checkpoint, which teaches; oneshot: "
            "that without sparsity training.",
        ),
    ] = "synth",
    checkpoint: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--checkpoint", help="The trained network to prune: safetensors or .pt."),
    ] = None,
    criterion: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--criterion",
            help="slimming or magnitude; default: that of the variant, magnitude without "
            "BatchNorm.",
        ),
    ] = None,
    pull: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            "--pull",
            help="How far L1 can move a BatchNorm scale (they start at 1); default: 1.5.",
        ),
    ] = None,
    iterations: Annotated[
        int,
        typer.Option("--iterations", min=1, help="Steps of pruning, with fine-tuning after each."),
    ] = 1,
    round_to: Annotated[
        int, typer.Option("--round-to", min=1, help="Make widths multiples of this.")
    ] = 1,
    bn_recal: Annotated[
        bool,
        typer.Option(
            "--bn-recal/--no-bn-recal",
            help="Fine-tune with or without recalibrated BatchNorm statistics; both are scored.",
        ),
    ] = True,
    labels: Annotated[str, typer.Option("--labels", help="soft or hard.")] = "soft",
    overrides: SetOption = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="Where results go; default: prune/ beside FILE."),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Prune and fine-tune a network on the file alone, beside random channels and new weights."""
    from scdd.device import resolve_device
    from scdd_apps.files import find_inputs, label_kinds
    from scdd_apps.prune.plan import Options, make_plan
    from scdd_apps.prune.protocol import prune_on

    (kind,) = label_kinds([labels])
    where = resolve_device(device)
    inputs = find_inputs(file, data, baseline, baselines, out, "prune")
    options = Options(
        arch=arch,
        ratios=ratio or [0.5],
        seeds=seeds,
        epochs=epochs,
        pull=pull,
        labels=kind,
        overrides=overrides or [],
        variant=variant,
        checkpoint=checkpoint,
        criterion=criterion,
        iterations=iterations,
        round_to=round_to,
        bn_recal=bn_recal,
    )
    prune_on(inputs, make_plan(inputs, options), where)


@app.command()
def export(
    model: ModelArgument,
    form: Annotated[str, typer.Option("--format", help="onnx.")] = "onnx",
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="The file to write; default: beside MODEL."),
    ] = None,
) -> None:
    """Write a network as ONNX, compared with PyTorch by ONNX Runtime."""
    from scdd_apps.extras import require_onnx

    require_onnx()
    from scdd_apps.export.network_file import export_network

    print(export_network(model, form, out))


@app.command()
def quantize(
    model: ModelArgument,
    file: FileArgument = None,
    method: Annotated[
        str,
        typer.Option("--method", help="Ranges of what is written: minmax, percentile or entropy."),
    ] = "minmax",
    images: Annotated[
        int, typer.Option("--images", min=1, help="Calibration images a row, if FILE has them.")
    ] = 512,
    baselines: BaselinesOption = False,
    baseline: BaselineOption = None,
    data: DataOption = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="Where results go; default: quantize/ beside FILE."),
    ] = None,
) -> None:
    """Turn a network into int8, calibrated on the file alone, on the CPU."""
    from scdd_apps.extras import require_onnx

    require_onnx()
    from scdd_apps.files import find_inputs
    from scdd_apps.networks import load_network
    from scdd_apps.quantize.comparison import quantize_with

    network = load_network(model)
    quantize_with(
        find_inputs(file, data, baseline, baselines, out, "quantize"), network, method, images
    )


def main() -> None:
    """Run the command line; every foreseen error is one sentence."""
    run(app)
