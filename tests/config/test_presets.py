"""Every shipped preset, to the last key, against the values of the papers."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from scdd.config.checkpoint import CheckpointConfig
from scdd.config.known_checkpoints import find
from scdd.config.load import load_config, preset_names, presets_dir
from scdd.config.objectives import BarlowTwinsConfig, MocoV2Config, SupervisedConfig
from scdd.config.recover import RecoverConfig
from scdd.config.relabel import RandAugmentConfig
from scdd.config.run import RunConfig
from scdd.config.squeeze import SqueezeConfig
from scdd.config.views import ViewConfig
from scdd.models import create_model, list_models
from tests.config.best_presets import BEST
from tests.config.published_presets import PUBLISHED
from tests.config.tuned_presets import TUNED

PRESETS = PUBLISHED | BEST | TUNED
PUBLIC_TEACHERS = [
    name for name in PRESETS if "known" in PRESETS[name]["squeeze"].get("checkpoint", {})
]


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key; sequences of values as lists, of sections by number."""
    if isinstance(value, list | tuple):
        if not any(isinstance(item, dict) for item in value):
            return {prefix: list(value)}
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= leaves(item, f"{prefix}.{key}" if prefix else key)
    return found


def defaults_under(settings: dict[str, Any]) -> dict[str, Any]:
    """All defaults, with those of the sections that `settings` opens, adds to or exchanges."""
    found = RunConfig(method=settings["method"]).model_dump()
    if "recover_real" in settings:
        found["recover_real"] = RecoverConfig().model_dump()
    if "randaugment" in settings.get("relabel", {}):
        found["relabel"]["randaugment"] = RandAugmentConfig().model_dump()
    found["squeeze"] |= squeeze_defaults(settings["squeeze"])
    if "squeeze_labellers" in settings:
        found["squeeze_labellers"] = [
            SqueezeConfig().model_dump() | squeeze_defaults(labeller)
            for labeller in settings["squeeze_labellers"]
        ]
    return found


def squeeze_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Defaults of the sections of a squeeze."""
    found: dict[str, Any] = {}
    if "checkpoint" in settings:
        found["checkpoint"] = CheckpointConfig(path="").model_dump()
    if "views" in settings:
        found["views"] = [ViewConfig().model_dump()] * len(settings["views"])
    if settings.get("objective") == {"name": "supervised"}:
        found["objective"] = SupervisedConfig().model_dump()
    if settings.get("objective", {}).get("name") == "barlow_twins":
        found["objective"] = BarlowTwinsConfig().model_dump()
    return found


def test_a_recipe_is_called_the_papers_only_where_the_paper_has_a_table_for_it():
    recipes = {name: load_config(name).recipe for name in PRESETS}
    assert {name for name, recipe in recipes.items() if recipe == "paper"} == {
        "cifar100_ipc50",
        "tiny_imagenet_ipc50",
        "imagenet_ipc50",
        "imagenet_moco_v2",
        "imagenet_moco_v3",
        "imagenet_swav",
        "imagenet_dino",
    }
    assert {name for name, recipe in recipes.items() if recipe == "best"} == set(BEST)


@pytest.mark.parametrize("name", PUBLIC_TEACHERS)
def test_a_public_teacher_is_what_was_released(name: str):
    """Files by the names of their release, and the probe by whether a linear layer is in them."""
    config = load_config(name)
    checkpoint = config.squeeze.checkpoint
    assert checkpoint is not None and checkpoint.known is not None
    known = find(checkpoint.known)
    files = [address and Path(address).name for address in (known.file, known.head)]
    assert [file and Path(file).name for file in (checkpoint.path, checkpoint.head)] == files
    assert name == f"imagenet_{known.objective}" and config.squeeze.arch == known.arch
    assert (config.dataset.mean, config.dataset.std) == (known.mean, known.std)
    assert (config.probe.solver == "given") == (known.head is not None)


def test_every_preset_is_written_out_here():
    assert set(preset_names()) == set(PRESETS)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_holds_exactly_these_settings(name: str):
    written = yaml.safe_load((presets_dir() / f"{name}.yaml").read_text(encoding="utf-8"))
    summary = written.pop("summary")
    assert summary and "\n" not in summary
    assert leaves(written) == leaves(PRESETS[name])


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_what_a_preset_leaves_out_is_the_default_of_the_code(name: str):
    loaded = leaves(load_config(name).model_dump())
    expected = (
        leaves(defaults_under(PRESETS[name]))
        | leaves(PRESETS[name])
        | {"summary": loaded["summary"]}
    )
    assert loaded == expected


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_loads_and_is_data_that_goes_through_yaml_unchanged(name: str):
    config = load_config(name)
    again = RunConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
    assert again == config and config.summary and config.ipc >= 1


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_can_be_run(name: str):
    """What no range of a single value says, and would end a run after hours."""
    config = load_config(name)
    assert {config.squeeze.arch, config.posttrain.arch} <= set(list_models())
    objective = config.squeeze.objective
    if isinstance(objective, MocoV2Config):
        assert objective.queue % (config.squeeze.batch * (2 if objective.symmetric else 1)) == 0
    if config.relabel.teacher_bn == "batch":
        assert config.posttrain.batch >= config.relabel.group
    backbone = create_model(config.squeeze.arch, 0, config.dataset.image_size)
    norms = [m for m in backbone.modules() if type(m).__name__ == "BatchNorm2d"]
    assert norms, "recover needs a teacher with BatchNorm"


def test_the_default_preset_needs_no_files_and_flips_no_digit():
    config = load_config("digits")
    assert config.dataset.name == "digits" and config.dataset.root is None
    assert config.method == "scdd" and config.recipe == "custom" and config.ipc == 10
    flips = (
        *(view.flip for view in config.squeeze.views),
        config.probe.flip,
        config.recover.flip,
        config.relabel.flip,
    )
    assert not any(flips)
    assert config.recover_real is not None and config.recover_real.start == "real"
    assert not config.recover_real.flip and config.recover.start == "noise"
