"""Run a configuration in a process of its own and keep what every step took."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from scdd.errors import ConfigError, RunError
from scdd.files import write_json

ROOT = Path(__file__).resolve().parents[1]
START = "start"
"""As if it were a step: what lies outside of all steps, imports and the reading of the images."""
SAMPLE_MILLISECONDS = 200


def timed_run(
    settings: dict[str, Any], folder: Path, device: str, processes: int = 1
) -> dict[str, Any]:
    """Run `settings` by `scdd distill`; return seconds, peak_bytes and watts of every step.

    The result is kept in `folder`, and found there the next time; of the run itself nothing stays.

    Args:
        settings: a whole configuration.
        folder: of this run alone.
        device: cpu, cuda ...
        processes: started by torchrun, if several.

    Raises:
        ConfigError: if `folder` holds the measurement of something else.
        RunError: if the run fails, with what it said.
    """
    record, plan, run = folder / "measured.json", folder / "settings.yaml", folder / "run"
    what = {"settings": settings, "device": device, "processes": processes}
    if record.exists():
        found = json.loads(record.read_text())
        if found["what"] != json.loads(json.dumps(what)):
            raise ConfigError(
                f"{folder}: was measured with other settings; choose another --scratch, or remove "
                "that one"
            )
        return dict(found)
    if plan.exists():  # Half a run: a step that is taken up again is timed from there on.
        shutil.rmtree(run, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    plan.write_text(yaml.safe_dump(settings, sort_keys=False))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        # A cache that an earlier run has filled would make compiling look fast.
        "TORCHINDUCTOR_CACHE_DIR": str(run / "inductor"),
    }
    words = [sys.executable, "-m"]
    if processes > 1:
        words += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    words += ["scdd", "distill", str(plan), "--out", str(run), "--device", device]
    started = time.monotonic()
    with power_samples(device) as samples:
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
    wall = time.monotonic() - started
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        sentence = next((line for line in said if line.startswith("error: ")), said[-1])
        raise RunError(f"{plan}: the run failed ({sentence.removeprefix('error: ')})")
    found = {"what": what, "seconds": {}, "peak_bytes": {}, "watts": {}}
    for marker in run.glob("*/done.json"):
        step, about = marker.parent.name, json.loads(marker.read_text())
        end = marker.stat().st_mtime
        found["seconds"][step] = about["seconds"]
        found["peak_bytes"][step] = about["peak_bytes"]
        during = [watts for at, watts in samples if end - about["seconds"] <= at <= end]
        found["watts"][step] = statistics.fmean(during) if during else None
    found["seconds"][START] = max(0.0, wall - sum(found["seconds"].values()))
    write_json(record, found)
    shutil.rmtree(run)
    return found


@contextmanager
def power_samples(device: str) -> Iterator[list[tuple[float, float]]]:
    """Collect (time, watts) of the GPU that `device` means, as nvidia-smi tells; none without."""
    samples: list[tuple[float, float]] = []
    if not device.startswith("cuda") or shutil.which("nvidia-smi") is None:
        yield samples
        return
    number = int(device.partition(":")[2] or 0)
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    chosen = visible[number] if number < len(visible) else str(number)
    query = ["--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    process = subprocess.Popen(
        ["nvidia-smi", f"--id={chosen}", *query, f"--loop-ms={SAMPLE_MILLISECONDS}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def collect() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                samples.append((time.time(), float(line)))
            except ValueError:  # `[N/A]` where the driver does not tell.
                continue

    reader = threading.Thread(target=collect, daemon=True)
    reader.start()
    try:
        yield samples
    finally:
        process.terminate()
        process.wait()
        reader.join()
