"""The folder of a study: runs, finished and failed rows, rates; it belongs to one study."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from provenance import without_paths
from study_plan import Job

from scdd.errors import ConfigError, UserError
from scdd.files import write_json

SCHEMA = "scdd study folder 1"
ROW_SCHEMA = "scdd study row 1"


class StudyFolder:
    """Where a study leaves what it makes.

    `rows/` has one JSON for every finished job, `failed/` one for every job that cannot go on,
    `runs/`, `apps/` and `scripts/` what they work in.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock: int | None = None
        """The open file that holds it; for processes that may outlive this one."""

    @contextmanager
    def held(self, title: str) -> Iterator[int]:
        """Hold the folder for a study; yields how often it was held, this time included.

        Raises:
            UserError: if it belongs to another study, or a process holds it, or it cannot be made.
        """
        with locked(self.path) as self.lock:
            turn = turn_of(self.path, title) + 1
            history = [*history_of(self.path), os.urandom(4).hex()]
            about = {"schema": SCHEMA, "title": title, "turn": turn, "history": history}
            write_json(self.path / "study.json", about)
            yield turn

    def run(self, job: Job) -> Path:
        """The run directory of a job."""
        return self.path / "runs" / job.name

    def place(self, job: Job) -> Path:
        """Where an app or a script works."""
        return self.path / ("apps" if hasattr(job.row, "app") else "scripts") / job.name

    def finished(self, job: Job) -> dict[str, Any] | None:
        """The record of a job, or None while it is not finished.

        Raises:
            ConfigError: if it was made with other settings.
        """
        path = self.path / "rows" / f"{job.name}.json"
        if not path.exists():
            return None
        try:
            record = dict(json.loads(path.read_text(encoding="utf-8")))
            before = record["asked"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}: is damaged ({error}); move it away to make the row again"
            ) from error
        now = asked_of(job)
        if before != now:
            key = first_difference(before, now)
            raise ConfigError(
                f"{path}: was made with another {key} than the plan has now; move the file away to "
                "make the row again, or choose another --out"
            )
        return record

    def finish(self, job: Job, record: dict[str, Any]) -> None:
        """Declare a job finished."""
        about = {"schema": ROW_SCHEMA, "row": job.row.name, "seed": job.seed}
        path = self.path / "rows" / f"{job.name}.json"
        write_json(path, {**about, "asked": asked_of(job), **record})
        self._failure(job).unlink(missing_ok=True)

    def failure(self, job: Job) -> str | None:
        """Why a job cannot go on, if it cannot, with these settings."""
        path = self._failure(job)
        if not path.exists():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return str(record["sentence"]) if record["asked"] == asked_of(job) else None
        except (ValueError, KeyError, TypeError):
            return None  # Damaged, so it is tried again.

    def fail(self, job: Job, sentence: str) -> None:
        """Declare that a job cannot go on."""
        write_json(self._failure(job), {"sentence": sentence, "asked": asked_of(job)})

    def forget_failures(self) -> None:
        """Let all jobs that could not go on be tried again."""
        for path in (self.path / "failed").glob("*.json"):
            path.unlink()

    def _failure(self, job: Job) -> Path:
        return self.path / "failed" / f"{job.name}.json"


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold a folder, made if missing; yields the open file that does.

    Raises:
        UserError: if a process holds it, or it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / "study.lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be used as a folder of a study ({error.strerror}); choose another "
            "--out"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{path}: another process is at work on this study, or an app or script that it "
                "has begun; wait for it, or choose another --out"
            ) from None
        yield lock
    finally:
        os.close(lock)


def turn_of(path: Path, title: str) -> int:
    """How often a folder was held by this study; 0: never.

    Raises:
        UserError: if it belongs to another study, or to none.
    """
    record = path / "study.json"
    if not record.exists():
        if path.exists() and any(p for p in path.iterdir() if p.name != "study.lock"):
            raise UserError(f"{path}: is no folder of a study; choose another --out")
        return 0
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        turn, other = int(found["turn"]), str(found["title"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{record}: is damaged ({error}); choose another --out") from error
    if other != title:
        raise UserError(
            f"{path}: belongs to the study '{other}', not '{title}'; choose another --out"
        )
    return turn


def history_of(path: Path) -> list[str]:
    """A mark for every time that a folder was held, the last one last; none where there are none.

    Tells which of two copies of a study is made of the other.
    """
    record = path / "study.json"
    found = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    return list(found.get("history", ()))


def asked_of(job: Job) -> dict[str, Any]:
    """What decides the outcome of a job, as JSON has it."""
    if job.cfg is not None:
        until = getattr(job.row, "until", None)
        asked = {"config": _without_convenience(job), "until": until}
    else:
        asked = job.row.model_dump(include={"app", "script", "of", "file", "arguments", "data"})
    return dict(json.loads(json.dumps(asked)))


def _without_convenience(job: Job) -> dict[str, Any]:
    assert job.cfg is not None
    config = without_paths(job.cfg)
    for key in ("summary", "checkpoint_minutes"):
        config.pop(key, None)
    return config


def first_difference(before: Any, now: Any, key: str = "") -> str:
    """The key of the first difference of two records."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                inner = f"{key}.{name}" if key else name
                return first_difference(before.get(name), now.get(name), inner)
    return key.removeprefix("config.") or "content"
