"""`scdd stats`: the BatchNorm statistics of checkpoints side by side."""

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from torch import Tensor

from scdd.bn_plots import SOFTWARE, draw_statistics
from scdd.bn_report import (
    BatchNormLayer,
    ChannelStatistics,
    Checkpoints,
    batchnorm_layers,
    channel_statistics,
)
from scdd.errors import CheckpointError, ConfigError
from scdd.files import replacing
from scdd.foreign.layouts import PREFERRED, SECOND
from scdd.foreign.read import read
from scdd.inspection import printable
from scdd.tables import table

Rows = dict[str | None, ChannelStatistics]
"""By the name of the layer; None for all layers together."""

CSV_COLUMNS = (
    "checkpoint",
    "k",
    "layer",
    "channels",
    "mean_of_running_mean",
    "variance_of_running_mean",
    "mean_of_running_var",
    "variance_of_running_var",
    "entropy_nats",
)
OWN = {"bn_stats.csv": ",".join(CSV_COLUMNS).encode(), "bn_stats.png": SOFTWARE.encode()}
"""The files that `--out` is given, each with what stands near its start if it is from here."""

QUANTITIES: dict[str, Callable[[ChannelStatistics], str]] = {
    "variance of running means": lambda found: f"{found.variance_of_means:.3g}",
    "variance of running variances": lambda found: f"{found.variance_of_variances:.3g}",
    "entropy (nats)": lambda found: f"{found.entropy:.2f}",
}
NOTE = (
    "Variances are across channels, divided by their number. That of the running means in the "
    'first\nrow is "BN-mean Var" of SC-DD\'s Table 2. The entropy is Eq. 7, summed over channels.'
)


def compare_checkpoints(paths: Sequence[Path], out: Path | None) -> str:
    """Return the tables; with `out`, also write bn_stats.csv and bn_stats.png into that folder.

    Raises:
        UserError: if a checkpoint cannot be used, or `out` holds files that are not from here.
    """
    names, places = shortest_endings(paths), [path.resolve() for path in paths]
    for number, path in enumerate(paths):
        if places[number] in places[:number] or names[number] in names[:number]:
            raise CheckpointError(f"{path}: is given twice; give every checkpoint once")
    if out is not None:
        _refuse_foreign(out)
    checkpoints = {
        name: _printable(batchnorm_layers(read_statistics(path), path))
        for name, path in zip(names, paths, strict=True)
    }
    text = f"{comparison(checkpoints)}\n\n{NOTE}"
    if any((layer.running_var == 0).any() for layers in checkpoints.values() for layer in layers):
        text += "\nIt is -inf where a channel has running variance 0."
    if out is not None:
        write_csv(out / "bn_stats.csv", checkpoints)
        draw_statistics(out / "bn_stats.png", checkpoints)
        text += f"\n\nFiles: {printable(str(out))}/bn_stats.csv, bn_stats.png"
    return text


def read_statistics(path: Path) -> Mapping[str, Tensor]:
    """Read the tensors of the network in a checkpoint, in the order of its keys.

    Of two networks the teacher is taken before the student, the query encoder before the key
    encoder; what stands before all of its keys is left out.

    A safetensors file does not keep the order; its keys are sorted, numbers in them as numbers,
    which comes to the same for ResNets and most other networks.

    Raises:
        CheckpointError: if the file is missing, damaged, or wants to run code.
    """
    states = read(path).states

    def rank(where: str) -> tuple[bool, int]:
        layers = sum(key.endswith("running_mean") for key in states[where])
        return bool(layers) and where.rpartition(".")[2] in PREFERRED, layers

    state = states[max(states, key=rank)]
    first = {key: value for key, value in state.items() if not SECOND & set(key.split("."))}
    state = first if any(key.endswith("running_mean") for key in first) else state
    if list(state) == sorted(state):
        state = {key: state[key] for key in sorted(state, key=_natural)}
    prefix = _shared_prefix([key for key in state if ".running_" in key])
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _shared_prefix(keys: Sequence[str]) -> str:
    """The words, with their dots, that stand before all keys; a layer keeps one word of its own."""
    columns = zip(*(key.split(".")[:-2] for key in keys), strict=False)
    shared = takewhile(lambda column: len(set(column)) == 1, columns)
    return "".join(f"{column[0]}." for column in shared)


def shortest_endings(paths: Sequence[Path]) -> list[str]:
    """Name every path by the fewest last parts that no other path ends in, as they are shown."""
    parts = [tuple(map(printable, path.absolute().parts)) for path in paths]
    names = []
    for own in parts:
        count = 1
        while count < len(own) and sum(other[-count:] == own[-count:] for other in parts) > 1:
            count += 1
        names.append(str(Path(*own[-count:])))
    return names


def comparison(checkpoints: Checkpoints) -> str:
    """One row a layer, then all channels together; a table per quantity if there are several."""
    rows = _layer_names(checkpoints.values())
    found: dict[str, Rows] = {}
    for name, layers in checkpoints.items():
        found[name] = {layer.name: channel_statistics([layer]) for layer in layers}
        found[name][None] = channel_statistics(layers)
    if len(found) == 1:
        ((name, only),) = found.items()
        columns = [(what, only, show) for what, show in QUANTITIES.items()]
        return f"{name}\n\n{_table(rows, columns)}"
    return "\n\n".join(
        f"{what}\n\n{_table(rows, [(name, of, show) for name, of in found.items()])}"
        for what, show in QUANTITIES.items()
    )


def write_csv(path: Path, checkpoints: Checkpoints) -> None:
    """Write a row per checkpoint and layer k (counted as in Eq. 8), then one for all its layers."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for name, layers in checkpoints.items():
            groups: list[tuple[Any, str, Sequence[BatchNormLayer]]] = [
                (k, layer.name, [layer]) for k, layer in enumerate(layers)
            ]
            for k, layer_name, group in [*groups, ("", "overall", layers)]:
                of = channel_statistics(group)
                writer.writerow([name, k, layer_name, *astuple(of)])


def _table(
    rows: Sequence[str],
    columns: Sequence[tuple[str, Rows, Callable[[ChannelStatistics], str]]],
) -> str:
    lines = []
    for row in (*rows, None):
        found = [of.get(row) for _, of, _ in columns]
        channels = dict.fromkeys(str(one.channels) for one in found if one)
        cells = [
            show(one) if one else "-" for one, (_, _, show) in zip(found, columns, strict=True)
        ]
        lines.append(["overall" if row is None else row, "/".join(channels), *cells])
    return table(["BatchNorm layer", "channels", *(head for head, _, _ in columns)], lines)


def _layer_names(networks: Iterable[Sequence[BatchNormLayer]]) -> list[str]:
    """The names in all networks; one that only some have stands behind what precedes it there."""
    names: list[str] = []
    for layers in networks:
        place = 0
        for layer in layers:
            if layer.name in names:
                place = names.index(layer.name)
            else:
                names.insert(place, layer.name)
            place += 1
    return names


def _printable(layers: Sequence[BatchNormLayer]) -> list[BatchNormLayer]:
    return [replace(layer, name=printable(layer.name)) for layer in layers]


def _refuse_foreign(out: Path) -> None:
    """Refuse a folder in which something not from here would be replaced."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is not a folder; choose another")
    for name, mark in OWN.items():
        path = out / name
        if path.exists() and mark not in _start(path):
            raise ConfigError(
                f"{path}: is there, and not from scdd stats; move it, or choose another --out"
            )


def _start(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(1024)


def _natural(key: str) -> list[tuple[int, str]]:
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"([0-9]+)", key)]
