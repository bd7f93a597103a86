"""Configurations from YAML, presets and `--set key=value`, with errors that name the key."""

import copy
import difflib
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from scdd.config.condense_pairs import PretrainConfig
from scdd.config.dataset import LEAST_SIZE
from scdd.config.methods import change_method
from scdd.config.posttrain import PosttrainConfig
from scdd.config.relabel import RelabelConfig
from scdd.config.run import RunConfig
from scdd.errors import ConfigError
from scdd.progress import say

DEFAULT_PRESET = "digits"
BESIDE_THE_RECIPE = {
    *("summary", "seed", "threads", "checkpoint_minutes"),
    *("dataset.name", "dataset.root", "dataset.download", "dataset.workers"),
    *("posttrain.labels", "posttrain.seeds", "posttrain.evaluate_every"),
    *("pretrain.seeds", "pretrain.transfer"),
}
"""Keys that change where, how often and how repeatably a recipe is run, but not the recipe."""


def presets_dir() -> Path:
    """Folder of the presets: inside an installed wheel, else `configs/` beside the package."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "presets"
    return shipped if shipped.is_dir() else package.parent / "configs"


def preset_names() -> list[str]:
    """Names that `load_config` takes in place of a path."""
    return sorted(path.stem for path in presets_dir().glob("*.yaml"))


def find_config(source: str | None) -> Path:
    """Path of a YAML file or preset; None means the default preset.

    Raises:
        ConfigError: if it is neither.
    """
    name = source or DEFAULT_PRESET
    if name in preset_names():
        return presets_dir() / f"{name}.yaml"
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise ConfigError(f"{name}: no such configuration file")
    raise ConfigError(
        f"unknown preset '{name}'{_did_you_mean(name, preset_names())}; "
        f"presets: {', '.join(preset_names())}"
    )


def load_config(source: str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file or preset, apply `key=value` overrides, check every key.

    A recipe that overrides change is `custom`. Where they change the method, sections that only the
    one of the file has use for are left out, which is said.

    Args:
        source: path or preset name; None for the default preset.
        overrides: dotted keys with YAML values, such as `recover.iterations=500`.

    Raises:
        ConfigError: with file, key, what was found and what is allowed.
    """
    path = find_config(source)
    settings = read_yaml(path)
    written = check(settings, path.name)
    methods = [text for key, _, text in (o.partition("=") for o in overrides) if key == "method"]
    if methods and (notes := change_method(settings, methods[-1])):
        say(f"method {methods[-1]}: {', '.join(notes)}")
    cfg = _changed(settings, [(override, override) for override in overrides])
    same = _recipe(cfg) == _recipe(written)
    return cfg.model_copy(update={"recipe": written.recipe if same else "custom"})


def is_run(folder: Path) -> bool:
    """Whether a folder is the directory of a run."""
    return all((folder / name).is_file() for name in ("config.yaml", "environment.json"))


def read_run_config(run: Path) -> RunConfig | None:
    """The configuration of the run directory `run`, or None if it is not one."""
    path = run / "config.yaml"
    return check(read_yaml(path), str(path)) if is_run(run) else None


def posttrain_config(base: PosttrainConfig | None, overrides: Sequence[str]) -> PosttrainConfig:
    """Training settings for a file: those of its run, or the defaults, with `key=value` changes.

    Raises:
        ConfigError: as `load_config` does.
    """
    settings = {"posttrain": base.model_dump() if base else {}}
    return _changed(settings, [(f"posttrain.{o}", o) for o in overrides]).posttrain


def pretrain_config(
    base: PretrainConfig | None, overrides: Sequence[str], image_size: int
) -> PretrainConfig:
    """Settings of pre-training for a file: those of its run, or the defaults, with changes.

    Raises:
        ConfigError: as `load_config` does, and about images that are too small for any network.
    """
    if image_size < LEAST_SIZE:
        raise ConfigError(
            f"its images have {image_size} px, but networks want {LEAST_SIZE} or more; give a file "
            "of larger ones"
        )
    # Its other tasks are no part of how a network is trained.
    own = base.model_dump(exclude={"transfer"}) if base else {}
    settings = {"method": "boost", "dataset": {"image_size": image_size}, "pretrain": own}
    changed = _changed(settings, [(f"pretrain.{o}", o) for o in overrides]).pretrain
    assert changed is not None
    return changed


def relabel_config(overrides: Sequence[str]) -> RelabelConfig:
    """The default settings of relabel with `relabel.key=value` changes.

    Raises:
        ConfigError: as `load_config` does, and about a key of another section.
    """
    for override in overrides:
        if not override.startswith("relabel."):
            raise ConfigError(f"--set {override}: only settings of relabel have an effect here")
    # Students on class labels alone: no choice for relabel is at odds with these.
    settings = {"posttrain": {"labels": ["hard"]}}
    return _changed(settings, [(override, override) for override in overrides]).relabel


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: if it cannot be read, is not YAML, or is not a mapping.
    """
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: is not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        found = "an empty file" if settings is None else type(settings).__name__
        raise ConfigError(f"{path}: wants a mapping of sections, found {found}")
    return settings


class _Loader(yaml.SafeLoader):
    """YAML's own safe loader, which would let the last of two equal keys win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key '{key.value}' stands there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def check(settings: dict[str, Any], where: str) -> RunConfig:
    """Validate settings; `where` opens the sentence of an error.

    Raises:
        ConfigError: about the first key that is unknown or has a wrong value.
    """
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(error)}") from None


def _changed(settings: dict[str, Any], overrides: Sequence[tuple[str, str]]) -> RunConfig:
    """Apply overrides, each given with how the user wrote it.

    Only the outcome has to be right, as keys may need each other; where it is not, the first
    override is named after which the same was wrong.
    """
    before = copy.deepcopy(settings)
    for override, _ in overrides:
        _apply(settings, override)
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        wrong = _sentence(error)
        for override, written in overrides:
            _apply(before, override)
            if _fault(before) == wrong:
                raise ConfigError(f"--set {written}: {wrong}") from None
        raise


def _fault(settings: dict[str, Any]) -> str | None:
    """What is wrong with settings, if anything is."""
    try:
        RunConfig.model_validate(settings)
    except ValidationError as error:
        return _sentence(error)
    return None


def _recipe(cfg: RunConfig) -> dict[str, Any]:
    """What a recipe consists of, without its name."""
    values = cfg.model_dump(exclude={"recipe"})
    for key in BESIDE_THE_RECIPE:
        section, _, name = key.rpartition(".")
        (values.get(section, {}) if section else values).pop(name, None)
    return values


def _apply(settings: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: wants key=value, such as recover.iterations=500")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from error
    *sections, last = key.split(".")
    place: Any = settings
    for section, following in pairwise((*sections, last)):
        place = _entry(place, section, following, override)
        if not isinstance(place, dict | list):
            raise ConfigError(f"--set {override}: {section} is a value, not a section")
    if isinstance(place, list):
        _entry(place, last, "", override)
        place[int(last)] = value
    else:
        place[last] = value


def _entry(place: Any, name: str, following: str, override: str) -> Any:
    """A part of a section, made where there is none, or a numbered entry of a list."""
    if isinstance(place, list):
        if not name.isdecimal() or int(name) >= len(place):
            raise ConfigError(
                f"--set {override}: '{name}' is no entry of a list of {len(place)}; entries count "
                "from 0"
            )
        return place[int(name)]
    if place.get(name) is None:
        if following.isdecimal():
            raise ConfigError(
                f"--set {override}: the configuration has no {name} of its own to change; give the "
                f"whole list, as in {override.partition(name)[0]}{name}=[{{...}}]"
            )
        place[name] = {}
    return place[name]


_NAMES = re.compile("'([^']*)'")
"""Quoted in what pydantic says."""


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    location, sections = _located(first["loc"])
    key, kind, found = ".".join(location), first["type"], first["input"]
    if kind == "extra_forbidden":
        *parents, name = location
        known = list(sections[0].model_fields)
        inside = f"{'.'.join(parents)}: " if parents else ""
        return (
            f"{inside}unknown key '{name}'{_did_you_mean(name, known)}; known: {', '.join(known)}"
        )
    if kind == "union_tag_invalid":
        names, name = [_name_of(section) for section in sections], first["ctx"]["tag"]
        return (
            f"{key}: unknown name '{name}'{_did_you_mean(name, names)}; known: {', '.join(names)}"
        )
    if kind == "union_tag_not_found":
        return f"{key}: wants a name, such as {{name: {_name_of(sections[0])}}}, found {found!r}"
    if kind == "model_type":
        return f"{key}: wants a section of settings, found {found!r}"
    message = first["msg"].removeprefix("Value error, ")
    message = (message[:1].lower() + message[1:]).replace("tuple", "list")
    if kind == "value_error":
        # A section says itself which of its keys it means.
        joint = "." if message.split(":")[0] in sections[0].model_fields else ": "
        return f"{key}{joint}{message}" if key else message
    close = _did_you_mean(found, _NAMES.findall(message)) if kind == "literal_error" else ""
    return f"{key}: {message}, found {found!r}{close}"


def _located(location: Sequence[int | str]) -> tuple[list[str], list[type[BaseModel]]]:
    """The key as the user wrote it, and the section that it stands in, or those that may.

    Where one of several sections may stand, pydantic adds the name of the one that does.
    """
    written: list[str] = []
    sections: list[type[BaseModel]] = [RunConfig]
    for part in location:
        if len(sections) > 1:
            sections = [section for section in sections if _name_of(section) == part]
            continue
        written.append(str(part))
        if part in sections[0].model_fields:
            sections = _sections(sections[0].model_fields[str(part)].annotation) or sections
    return written, sections


def _name_of(section: type[BaseModel]) -> str:
    """What tells a section from the others that may stand in its place."""
    return section.model_fields["name"].default


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections among what a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _did_you_mean(name: Any, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f", did you mean '{close[0]}'?" if close else ""
