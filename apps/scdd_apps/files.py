"""What the apps read and what they keep: the distilled file, what goes with it, finished rows."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from scdd.companions import companions_of, companions_of_pairs, newest_file
from scdd.config.condense_pairs import PretrainConfig
from scdd.config.load import load_config, posttrain_config, read_run_config
from scdd.config.methods import concerns
from scdd.config.posttrain import PosttrainConfig
from scdd.config.run import RunConfig
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
    pretraining: PretrainConfig | None = None
    """The same where the file holds representations."""
    train: ImageSource | None = None
    """Real images to probe networks on, where it does."""
    source: ImageSource | None = None
    """And the training images of its run."""

    @property
    def arms(self) -> dict[str, Path]:
        """Files to train on, by the name of their images."""
        arms = {self._own_arm: self.file}
        if self.baseline is not None and self.baseline_arm is not None:
            arms[self.baseline_arm] = self.baseline
        return arms

    @property
    def baseline_arm(self) -> str | None:
        """The name of the images of the other file, if there is one."""
        if self.baseline is None or self.baseline_header is None:
            return None
        random = self.baseline_header.method == "random" and self._own_arm == "distilled"
        return "random real" if random else f"baseline {self.baseline.stem}"

    @property
    def _own_arm(self) -> str:
        return "random real" if self.header.method == "random" else "distilled"

    @cached_property
    def baseline_header(self) -> Header | None:
        """What the other distilled file says of itself."""
        return None if self.baseline is None else read_header(self.baseline)

    @cached_property
    def val_digest(self) -> str | None:
        """Identifies the images that scores are of."""
        return None if self.val is None else _identity(self.val)

    @cached_property
    def train_digest(self) -> str | None:
        """Identifies the images that networks are probed on."""
        return None if self.train is None else _identity(self.train)

    def describe(self) -> str:
        """What is trained on and what is scored on, in two lines."""
        header = self.header
        scored = (
            f"scored on {len(self.val.labels)} real validation images"
            if self.val is not None
            else "not scored: no real validation images are known (give --data DIR)"
        )
        if self.train is not None:
            scored = f"probed on {len(self.train)} real training images, {scored}"
        holds = (
            f"representations of {header.target_dim} numbers"
            if header.represented
            else f"{len(header.class_names)} classes"
        )
        return (
            f"{self.file}: {header.count} images of {header.image_size} px, {holds}, method "
            f"{header.method}, recipe {header.recipe}\n{scored}"
        )


def _identity(images: ImageSource) -> str:
    """Digest of the labels of images, and of the pixels of up to 100 of them."""
    count = len(images.labels)
    some = torch.linspace(0, count - 1, min(count, 100)).long()
    content = [images.labels.cpu().numpy(), images.read(some).cpu().numpy()]
    return hashlib.sha256(b"".join(part.tobytes() for part in content)).hexdigest()


def find_inputs(
    file: Path | None,
    data: Path | None,
    baseline: Path | None,
    baselines: bool,
    out: Path | None,
    app: str,
    represented: bool = False,
    recipe: str | None = None,
) -> Inputs:
    """Resolve FILE, --data, --baseline, --baselines and --out of an app; says which file it took.

    Args:
        file: FILE; None for the newest of a run.
        data: an image folder.
        baseline: another distilled file.
        baselines: whether to compare with random real images.
        out: the folder for results; None for one beside the file.
        app: names that folder.
        represented: whether files of representations serve too; what lies beside them is compared
            with whether asked for or not.
        recipe: a preset or YAML file that says how networks are trained; None for the run itself.

    Raises:
        UserError: if something that was given cannot be used, or there is no file.
    """
    if file is None:
        file = newest_file()
        say(f"{file} is the newest distilled.h5 under runs/")
    header = read_header(file)
    pairs = represented and header.represented
    found = (companions_of_pairs if pairs else companions_of)(file, data, baseline)
    wanted = found.baseline if baselines or baseline is not None or pairs else None
    if baselines and wanted is None:
        raise ConfigError(
            f"--baselines: there is no random_real.h5 beside {file}; give --baseline FILE"
        )
    own = read_run_config(file.parent) if recipe is None else load_config(recipe)
    if own is not None and recipe is not None:
        _check_recipe(recipe, own, "pretrain" if pairs else "posttrain")
    inputs = Inputs(
        file,
        header,
        found.val,
        wanted,
        own.posttrain if own else None,
        out or file.parent / app,
        own.pretrain if own else None,
        found.train,
        found.source,
    )
    other = inputs.baseline_header
    if other is not None and other.digest == header.digest:
        raise ConfigError(f"--baseline {wanted}: holds the same as {file}; give another file")
    return inputs


def _check_recipe(recipe: str, cfg: RunConfig, section: str) -> None:
    if not concerns(cfg.method, section):
        raise ConfigError(
            f"--recipe {recipe}: method {cfg.method} has no section {section}, which says how "
            "networks learn from this file; give a recipe of another method"
        )


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
    check_overrides(overrides)
    given = [] if epochs is None else [f"epochs={epochs}"]
    cfg = posttrain_config(base, [*own, *overrides, *given])
    # A recipe for a long training must not warm up through all of a short one.
    most = cfg.epochs // SHARE_OF_WARM_UP
    if cfg.warmup_epochs > most and not any(o.startswith("warmup_epochs=") for o in overrides):
        cfg = cfg.model_copy(update={"warmup_epochs": most})
    return cfg


def check_overrides(overrides: Sequence[str], unused: Sequence[str] = UNUSED) -> None:
    """Refuse a `--set` of what the command has an option for, or of what is `unused` here.

    Raises:
        ConfigError: about the first.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key in OWN_OPTIONS:
            raise ConfigError(f"--set {override}: give it as the option {OWN_OPTIONS[key]}")
        if key.partition(".")[0] in unused:
            raise ConfigError(f"--set {override}: has no effect here; leave it out")


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
