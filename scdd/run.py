"""The run directory: a folder per step, done markers, the lock, metrics and environment."""

import fcntl
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from scdd.errors import StaleStep, UserError
from scdd.files import link_or_copy, refuse_if_full, sha256_of, write_json

PACKAGES = ("torch", "torchvision", "timm", "h5py", "numpy", "pydantic", "torch-pruning")


class RunDirectory:
    """Where one configuration's steps leave what they made.

    `<step>/done.json` is written last, so its presence proves a complete step;
    `<step>/settings.json` is written first, so half a step is never taken up under others.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory; a second process is refused.

        Raises:
            UserError: if another process holds it, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_foreign()
            file = (self.path / "run.lock").open("a+")
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be used as a run directory ({error.strerror}); "
                "choose another --out"
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise UserError(
                    f"{self.path}: process {file.read().strip() or '?'} is working in this run "
                    "directory; wait for it, or choose another --out"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def _refuse_foreign(self) -> None:
        """Refuse a folder whose files a run would replace."""
        if (self.path / "run.lock").exists():
            return
        for name in ("config.yaml", "results.json", "report.md"):
            if (self.path / name).exists():
                raise UserError(
                    f"{self.path}: is not a run directory, but holds a {name} that a run would "
                    "replace; choose another --out"
                )

    def folder(self, step: str) -> Path:
        """Folder of a step, made if missing."""
        path = self.path / step
        path.mkdir(exist_ok=True)
        return path

    def done(self, step: str) -> dict[str, Any] | None:
        """What `finish` recorded, or None while the step is not complete."""
        return _read_json(self.path / step / "done.json", "outputs", "seconds", "peak_bytes")

    def _begun(self, step: str) -> dict[str, Any] | None:
        """What `begin` recorded, or None if nothing was made since: then anything may change."""
        record = self.path / step / "settings.json"
        made = [path for path in record.parent.glob("*") if path != record]
        return _read_json(record, "settings", "inputs") if made else None

    def check_settings(self, step: str, settings: dict[str, Any]) -> None:
        """Refuse a step, whole or half, that was made with other settings.

        Raises:
            StaleStep: with the first key that differs, its old and its new value.
        """
        before = self._begun(step)
        if before is None:
            return
        old, new = _flat(before["settings"]), _flat(json.loads(json.dumps(settings)))
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                raise StaleStep(
                    f"{self.path}: step '{step}' was made with {key} = {_show(old.get(key))}, now "
                    f"it is {_show(new.get(key))}; redo it with --redo {step}, or choose another "
                    "--out"
                )

    def check_inputs(self, step: str, inputs: dict[str, str]) -> None:
        """Refuse a step, whole or half, that was made from other files.

        Raises:
            StaleStep: naming the input that has changed.
        """
        before = self._begun(step)
        if before is None:
            return
        for name in sorted(before["inputs"].keys() | inputs.keys()):
            if before["inputs"].get(name) != inputs.get(name):
                raise StaleStep(
                    f"{self.path}: step '{step}' was made from another {name} than is there now; "
                    f"redo it with --redo {step}, or choose another --out"
                )

    def check_outputs(self, step: str, done: dict[str, Any]) -> None:
        """Refuse a finished step whose files are gone.

        Raises:
            StaleStep: naming the first that is missing.
        """
        for name in done["outputs"]:
            if not (self.path / step / name).exists():
                raise StaleStep(
                    f"{self.path / step / name}: is gone, though step '{step}' was finished; make "
                    f"it again with --redo {step}"
                )

    def begin(self, step: str, settings: dict[str, Any], inputs: dict[str, str]) -> None:
        """Record what a step is made with, before it starts."""
        record = {"settings": settings, "inputs": inputs}
        write_json(self.folder(step) / "settings.json", record)

    def finish(
        self,
        step: str,
        outputs: dict[str, str],
        shown: tuple[str, ...],
        seconds: float,
        peak_bytes: dict[str, int],
    ) -> None:
        """Declare a step complete.

        Args:
            step: its name.
            outputs: file names in its folder, with their digests.
            shown: those that also stand at the top of the run directory.
            seconds: how long it took, since its last start.
            peak_bytes: peak memory by kind (host, device).
        """
        self.show(step, shown)
        record = {
            "outputs": outputs,
            "shown": shown,
            "seconds": round(seconds, 2),
            "peak_bytes": peak_bytes,
            "scdd": metadata_version("scdd"),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        write_json(self.folder(step) / "done.json", record)

    def digest_of(self, step: str) -> str:
        """One digest over all outputs of a finished step."""
        done = self.done(step)
        assert done is not None
        return "+".join(done["outputs"][name] for name in sorted(done["outputs"]))

    def set_aside(self, steps: list[str]) -> Path | None:
        """Move steps to `.old-<time>`; nothing is deleted. Returns that folder if any was there."""
        there = [step for step in steps if (self.path / step).exists()]
        if not there:
            return None
        aside = self.path / time.strftime(".old-%Y%m%d-%H%M%S")
        while aside.exists():
            aside = aside.with_name(aside.name + "-")
        aside.mkdir()
        for step in reversed(there):
            for name in self._shown(step):
                (self.path / name).unlink(missing_ok=True)
            (self.path / step).rename(aside / step)
        return aside

    def log(self, stage: str, /, **values: Any) -> None:
        """Append one line to metrics.jsonl."""
        line = {"time": round(time.time(), 2), "stage": stage, **values}
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            refuse_if_full(path, error)
            raise

    def _shown(self, step: str) -> list[str]:
        """Names of a step that may stand at the top."""
        try:
            return list((self.done(step) or {}).get("shown", ()))
        except UserError:
            # A damaged marker is why the step is redone, so it must not be in the way of that.
            return [path.name for path in (self.path / step).iterdir()]

    def show(self, step: str, names: tuple[str, ...]) -> None:
        """Show outputs of a step at the top of the run directory."""
        for name in names:
            link_or_copy(self.path / step / name, self.path / name)


def environment(device: str, threads: int) -> dict[str, Any]:
    """Hardware and versions, for environment.json and results."""
    return {
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_threads": threads,
        "device": device,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of scdd and of what it stands on."""
    return {name: metadata_version(name) for name in ("scdd", *PACKAGES)}


def metadata_version(name: str) -> str:
    """Version of a distribution; of scdd itself also where it is not installed."""
    if name == "scdd":
        from scdd import __version__

        return __version__
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def file_digests(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 of files in a step's folder."""
    return {name: sha256_of(folder / name) for name in names}


class PeakMemory:
    """Highest resident memory of this process since the object was made, in bytes."""

    def __init__(self) -> None:
        # Where it fails (not Linux), the peak since the process started is the best there is.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> int:
        """Peak so far."""
        try:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        except OSError:
            pass
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _read_json(path: Path, *keys: str) -> dict[str, Any] | None:
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
        for key in keys:
            if key not in record:
                raise ValueError(f"no {key}")
        return record
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: is damaged ({error}); redo the step with --redo {path.parent.name}"
        ) from error


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {str(number): item for number, item in enumerate(value)}
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{prefix}.{key}" if prefix else key))
    return flat


def _show(value: Any) -> str:
    return "unset" if value is None else json.dumps(value)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
