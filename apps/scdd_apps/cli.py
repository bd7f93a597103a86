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
DataOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--data", help="An image folder with val/ class folders, to score on."),
]
BaselineOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--baseline", help="A distilled file of random real images to compare with."),
]
BaselinesOption = Annotated[
    bool,
    typer.Option("--baselines", help="Compare with random_real.h5 beside FILE."),
]
SeedsOption = Annotated[int, typer.Option("--seeds", min=1, help="Networks per row.")]
EpochsOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--epochs", min=1, help="Passes over the file; default: see the printed plan."),
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
        typer.Option(
            "--arch", help="Repeatable; default: resnet18, mobilenet_v3_large and vit_tiny."
        ),
    ] = None,
    seeds: SeedsOption = 1,
    baselines: BaselinesOption = False,
    baseline: BaselineOption = None,
    data: DataOption = None,
    epochs: EpochsOption = None,
    labels: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--labels", help="soft or hard; repeatable; default: soft."),
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
    from scdd_apps.crossarch.comparison import DEFAULT_ARCHS, compare
    from scdd_apps.files import find_inputs, label_kinds

    kinds = label_kinds(labels or ["soft"])
    where = resolve_device(device)
    inputs = find_inputs(file, data, baseline, baselines, out, "crossarch")
    compare(inputs, arch or DEFAULT_ARCHS, kinds, seeds, epochs, overrides or [], where)


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
        float,
        typer.Option("--pull", help="How far L1 can move a BatchNorm scale (they start at 1)."),
    ] = 1.5,
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


def main() -> None:
    """Run the command line; every foreseen error is one sentence."""
    run(app)
