"""What the apps read and what they keep: the distilled file, what goes with it, finished rows."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from scdd.companions import companions_of, newest_file
from scdd.config.load import posttrain_config, read_run_config
from scdd.config.posttrain import PosttrainConfig
from scdd.datasets import ImageSource
from scdd.distilled import Header, read_header
from scdd.errors import ConfigError
from scdd.files import write_json
from scdd.posttraining import Labels
from scdd.progress import say

OWN_OPTIONS = {
    "arch": "--arch",
    "epochs": "--epochs",
    "labels": "--labels",
    "seeds": "--seeds",
}
UNUSED = ("evaluate_every",)
SHARE_OF_WARM_UP = 4
"""One epoch in so many at most is warm-up, unless `--set` says so."""


@dataclass(frozen=True)
class Inputs:
    """A distilled file, what goes with it, and the folder for results."""

    file: Path
    header: Header
    val: ImageSource | None
    """Real images to score on."""
    baseline: Path | None
    """Another distilled file, mostly of random real images, if a comparison was asked for."""
    training: PosttrainConfig | None
    """How the run that made the file trains its own students."""
    out: Path

    @property
    def arms(self) -> dict[str, Path]:
        """Files to train on, by the name of their images."""
        own = "random real" if self.header.method == "random" else "distilled"
        arms = {own: self.file}
        if self.baseline is not None:
            assert self.baseline_header is not None
            random = self.baseline_header.method == "random" and own == "distilled"
            arms["random real" if random else f"baseline {self.baseline.stem}"] = self.baseline
        return arms

    @cached_property
    def baseline_header(self) -> Header | None:
        """What the other distilled file says of itself."""
        return None if self.baseline is None else read_header(self.baseline)

    @cached_property
    def val_digest(self) -> str | None:
        """Identifies the images that scores are of: their labels, and the pixels of up to 100."""
        if self.val is None:
            return None
        count = len(self.val.labels)
        some = torch.linspace(0, count - 1, min(count, 100)).long()
        content = [self.val.labels.cpu().numpy(), self.val.read(some).cpu().numpy()]
        return hashlib.sha256(b"".join(part.tobytes() for part in content)).hexdigest()

    def describe(self) -> str:
        """What is trained on and what is scored on, in two lines."""
        header = self.header
        scored = (
            f"scored on {len(self.val.labels)} real validation images"
            if self.val is not None
            else "not scored: no real validation images are known (give --data DIR)"
        )
        return (
            f"{self.file}: {header.count} images of {header.image_size} px, "
            f"{len(header.class_names)} classes, method {header.method}, recipe {header.recipe}\n"
            f"{scored}"
        )


def find_inputs(
    file: Path | None,
    data: Path | None,
    baseline: Path | None,
    baselines: bool,
    out: Path | None,
    app: str,
) -> Inputs:
    """Resolve FILE, --data, --baseline, --baselines and --out of an app; says which file it took.

    Raises:
        UserError: if something that was given cannot be used, or there is no file.
    """
    if file is None:
        file = newest_file()
        say(f"{file} is the newest distilled.h5 under runs/")
    header = read_header(file)
    found = companions_of(file, data, baseline)
    wanted = found.baseline if baselines or baseline is not None else None
    if baselines and wanted is None:
        raise ConfigError(
            f"--baselines: there is no random_real.h5 beside {file}; give --baseline FILE"
        )
    own = read_run_config(file.parent)
    training = own.posttrain if own else None
    inputs = Inputs(file, header, found.val, wanted, training, out or file.parent / app)
    other = inputs.baseline_header
    if other is not None and other.digest == header.digest:
        raise ConfigError(f"--baseline {wanted}: holds the same as {file}; give another file")
    return inputs


def label_kinds(names: Iterable[str]) -> tuple[Labels, ...]:
    """Check the values of --labels; each stays once.

    Raises:
        ConfigError: if one is neither soft nor hard.
    """
    kinds: list[Labels] = []
    for name in dict.fromkeys(names):
        if name not in ("soft", "hard"):
            raise ConfigError(f"--labels {name}: choose soft or hard")
        kinds.append("soft" if name == "soft" else "hard")
    return tuple(kinds)


def settings_with(
    base: PosttrainConfig | None,
    own: Sequence[str],
    overrides: Sequence[str],
    epochs: int | None,
) -> PosttrainConfig:
    """Training settings: the run's (or the defaults), then an app's `own`, then the user's.

    These are `--set`, and `--epochs` if it is given.

    Raises:
        ConfigError: if a key is unknown, has a wrong value, or is an option of the command.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key in OWN_OPTIONS:
            raise ConfigError(f"--set {override}: give it as the option {OWN_OPTIONS[key]}")
        if key in UNUSED:
            raise ConfigError(f"--set {override}: has no effect here; leave it out")
    given = [] if epochs is None else [f"epochs={epochs}"]
    cfg = posttrain_config(base, [*own, *overrides, *given])
    # A recipe for a long training must not warm up through all of a short one.
    most = cfg.epochs // SHARE_OF_WARM_UP
    if cfg.warmup_epochs > most and not any(o.startswith("warmup_epochs=") for o in overrides):
        cfg = cfg.model_copy(update={"warmup_epochs": most})
    return cfg


class Rows:
    """Finished rows of a results folder, one JSON file each, found again by their settings."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "rows"

    def path(self, settings: dict[str, Any], suffix: str = ".json") -> Path:
        """File of the row with these settings."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{settings['arch']}-{digest[:16]}{suffix}"

    def find(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """Result of a finished row; None if it is not there, or damaged."""
        try:
            record = json.loads(self.path(settings).read_text(encoding="utf-8"))
            return dict(record["result"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, settings: dict[str, Any], result: dict[str, Any]) -> None:
        """Record a finished row."""
        write_json(self.path(settings), {"settings": settings, "result": result})


def training_identity(cfg: PosttrainConfig) -> dict[str, Any]:
    """The settings that decide a trained network, for the key of a row."""
    return cfg.model_dump(mode="json", exclude={"labels", "seeds", "evaluate_every"})
