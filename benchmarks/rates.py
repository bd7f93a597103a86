"""What a study has learnt about how long things take, by device, for the next time."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from scdd.config.run import RunConfig
from scdd.deadline import Pace
from scdd.errors import ConfigError
from scdd.files import write_json
from scdd.method_steps import steps_of

SCHEMA = "scdd rates 1"


class Rates:
    """Seconds by kind of work, step and command, on one device; the file has those of others too.

    Args:
        path: of the file, if there is one.
        device: what the rates belong to.
        content: of the file.
    """

    def __init__(self, path: Path | None, device: str, content: dict[str, Any]) -> None:
        self.path, self.device, self._content = path, device, content
        own = content["devices"].setdefault(device, {})
        self._paces: dict[str, dict[str, float]] = own.setdefault("paces", {})
        self._speeds: dict[str, dict[str, float]] = own.setdefault("speeds", {})
        self._commands: dict[str, float] = own.setdefault("commands", {})
        self.spent: dict[str, dict[str, float]] = own.setdefault("spent", {})
        """Seconds of each job by step."""
        for pace in self._paces.values():
            Pace(**pace)
        pairs = (*self._paces.values(), *self._speeds.values(), *self.spent.values())
        for seconds in (self._commands, *pairs):
            sum(map(float, seconds.values()))

    @classmethod
    def read(cls, path: Path | None, device: str, or_only: bool = False) -> Self:
        """Read the file, or begin one; `or_only`: that of another device, if it is the only one.

        Raises:
            ConfigError: if it is something else.
        """
        content: dict[str, Any] = {"schema": SCHEMA, "devices": {}}
        if path is not None and path.exists():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                if content["schema"] != SCHEMA:
                    raise ValueError(f"schema {content['schema']}")
                if or_only and len(content["devices"]) == 1:
                    (device,) = content["devices"]
                return cls(path, device, content)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"{path}: is no file of rates ({error}); move it away, and they are learnt anew"
                ) from error
        return cls(path, device, content)

    @property
    def learnt(self) -> bool:
        """Whether anything is known of this device."""
        return bool(self._speeds or self._commands)

    def write(self) -> None:
        """Keep what was learnt."""
        assert self.path is not None
        write_json(self.path, self._content)

    def paces(self, cfg: RunConfig) -> dict[str, Pace]:
        """What is known of the steps of a configuration, by their names."""
        kinds = {step.name: kind_of_work(cfg, step.name) for step in steps_of(cfg)}
        return {
            step: Pace(**self._paces[kind]) for step, kind in kinds.items() if kind in self._paces
        }

    def learn(self, cfg: RunConfig, paces: Mapping[str, Pace]) -> None:
        """Keep the paces of the steps that a run has been through."""
        for step, pace in paces.items():
            self._paces[kind_of_work(cfg, step)] = {
                name: round(seconds, 3) for name, seconds in asdict(pace).items()
            }

    def forget_spent(self, job: str, steps: Iterable[str]) -> None:
        """Count the seconds of these steps from nothing, as they are made from nothing."""
        for step in steps:
            self.spent.get(job, {}).pop(step, None)

    def add_spent(self, job: str, seconds: Mapping[str, float]) -> None:
        """Add to the seconds of a job, by step."""
        own = self.spent.setdefault(job, {})
        for step, more in seconds.items():
            own[step] = round(own.get(step, 0.0) + more, 2)

    def finished(self, cfg: RunConfig, step: str, flops: float, seconds: float) -> None:
        """Learn how fast a kind of work is."""
        if seconds > 0:
            known = {"flops": flops, "seconds": round(seconds, 2)}
            self._speeds[kind_of_work(cfg, step)] = known

    def foreseen(self, cfg: RunConfig, step: str, flops: float) -> float | None:
        """Seconds of a step by a finished one of the same kind; None: there was none.

        Steps of which no FLOPs are counted take as long as that one.
        """
        known = self._speeds.get(kind_of_work(cfg, step))
        if known is None:
            return None
        if not known["flops"] or not flops:
            return known["seconds"]
        return known["seconds"] * flops / known["flops"]

    def command(self, key: str) -> float | None:
        """Seconds of a command that has ended well, if it has."""
        return self._commands.get(key)

    def command_took(self, key: str, seconds: float) -> None:
        """Keep how long a command takes."""
        self._commands[key] = round(seconds, 2)


def kind_of_work(cfg: RunConfig, step: str) -> str:
    """What decides how long a unit of a step takes: networks, batch, size of the images."""
    values = cfg.model_dump(mode="json")
    section: Any = values.get(step) or {}
    sections = section if isinstance(section, list) else [section]
    about = [f"{step}, {cfg.dataset.image_size} px"]
    for part in sections:
        words = [str(part[key]) for key in ("arch", "solver", "codec") if part.get(key)]
        if isinstance(part.get("objective"), dict):
            words.append(part["objective"]["name"])
        words += [f"{key} {part[key]}" for key in ("batch", "group", "precision") if part.get(key)]
        about += [" ".join(words)] if words else []
    if step in ("probe", "select"):
        about.append(cfg.squeeze.arch)
    elif step not in ("squeeze", "squeeze_labellers", "squeeze_scorer", "posttrain", "report"):
        about += [network.arch for network in cfg.teachers_of(step).values()]
    if cfg.condense_pairs is not None:
        about.append(f"{cfg.condense_pairs.pool.arch} for {cfg.condense_pairs.budget_n}")
    return "; ".join(about)
