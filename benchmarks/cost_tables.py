"""Tables of what stages cost: hours of a whole run, and how they grow."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from scdd.progress import duration
from scdd.tables import size, table


def hours_table(result: Mapping[str, Any]) -> str:
    """One row a step, in the shape of Tables 10 to 12 of SC-DD, whose figures stand beside."""
    lines = []
    rows = result["rows"]
    for row in rows:
        peak, paper = row["peak_bytes"], row["paper"]
        error = row["error"]
        lines.append(
            [
                row["step"],
                row["unit"] or "all",
                _time(row["unit_seconds"]) if row["unit"] else "-",
                _time(row["seconds"]),
                "n/a" if error is None else f"{_time(error)}",
                f"{row['gpu_hours']:.3g}",
                size(peak["host"]) if "host" in peak else "-",
                size(peak["device"]) if "device" in peak else "-",
                "n/a" if row["kwh"] is None else f"{row['kwh']:.3g}",
                "-" if paper is None else _papers(paper),
            ]
        )
    seconds = sum(row["seconds"] for row in rows)
    errors = [row["error"] for row in rows]
    # Independent, so that squares add up.
    error = None if None in errors else sum(each**2 for each in errors) ** 0.5
    energies = [row["kwh"] for row in rows if row["kwh"] is not None]
    lines.append(
        ["all", "all", "-", _time(seconds), "n/a" if error is None else _time(error)]
        + [f"{seconds / 3600:.3g}", "-", "-", f"{sum(energies):.3g}" if energies else "n/a", "-"]
    )
    config, sizes, environment = result["config"], result["sizes"]["whole"], result["environment"]
    hardware = environment.get("gpu") or environment["processor"]
    paper = (
        " Paper: hours of SC-DD (arXiv:2404.07976) by its Tables 10 to 12; an epoch there is on 4 "
        "A100, all else on one RTX 4090."
        if any(row["paper"] for row in rows)
        else ""
    )
    note = (
        f"Preset {result['preset']}: {sizes['train']} training images of "
        f"{config['dataset']['image_size']} px, {sizes['classes']} classes, ipc {config['ipc']}, "
        f"one process. Measured on short runs, medians of {result['n']} interleaved rounds, and "
        "extrapolated; error: half the range of what single rounds foretell. Hours are those of "
        f"one {'GPU' if 'gpu' in environment else 'machine, by its CPU'}; memory is the peak of "
        f"the short runs, energy what nvidia-smi tells.{paper} {hardware}, "
        f"{environment['cpu_threads']} threads, torch {environment['versions']['torch']}, commit "
        f"{result['commit']}."
    )
    headers = ["step", "unit", "of a unit", "whole", "error", "hours", "host", "device", "kWh"]
    text = f"{table([*headers, 'paper, h'], lines)}\n\n{note}\n"
    return f"{text}\n{check_table(result)}" if result["check"] else text


def check_table(result: Mapping[str, Any]) -> str:
    """Foretold beside recorded times of a whole run."""
    lines = [
        [step, _time(of["foretold"]), _time(of["recorded"]), f"{of['per_cent']:+.1f} %"]
        for step, of in result["check"].items()
    ]
    return f"{table(['step', 'foretold', 'whole run', 'error'], lines)}\n"


def scaling_table(result: Mapping[str, Any]) -> str:
    """One row a step of every axis: seconds at the ends, and exponents."""
    lines = [
        [
            row["axis"],
            row["step"],
            ", ".join(map(str, row["sizes"])),
            ", ".join(f"{median(each):.2g}" for each in row["seconds"]),
            *(
                "n/a" if row[key] is None else f"{row[key]:.2f}"
                for key in ("exponent", "exponent_without_fixed")
            ),
        ]
        for row in result["rows"]
    ]
    config, environment = result["config"], result["environment"]
    hardware = environment.get("gpu") or environment["processor"]
    note = (
        f"Medians of {result['n']} interleaved rounds of a tiny net, {config['classes']} classes "
        f"of {config['images']} images of {config['size']} px but where these vary. Exponent: "
        "slope of log seconds over log size; then without the fixed cost that the two ends tell. "
        f"{hardware}, {environment['cpu_threads']} threads, torch "
        f"{environment['versions']['torch']}, commit {result['commit']}."
    )
    headers = ["axis", "step", "sizes", "seconds", "exponent", "without fixed"]
    return f"{table(headers, lines)}\n\n{note}\n"


def _papers(paper: Mapping[str, Any]) -> str:
    of = f" / {paper['unit']}" if paper["unit"] else ""
    return f"{paper['hours']:.3g}{of} (Table {paper['table']})"


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)
