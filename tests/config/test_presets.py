"""Every shipped preset, to the last key, against the values of the paper's tables."""

from typing import Any

import pytest
import yaml

from scdd.config.load import load_config, preset_names, presets_dir
from scdd.config.recover import RecoverConfig
from scdd.config.run import RunConfig
from scdd.models import create_model, list_models
from tests.config.published_presets import PUBLISHED
from tests.config.tuned_presets import TUNED

PRESETS = PUBLISHED | TUNED


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


def test_a_recipe_is_called_the_papers_only_where_the_paper_has_a_table_for_it():
    recipes = {name: load_config(name).recipe for name in PRESETS}
    assert {name for name, recipe in recipes.items() if recipe == "paper"} == {
        "cifar100_ipc50",
        "tiny_imagenet_ipc50",
        "imagenet_ipc50",
    }


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
    default = leaves(RunConfig().model_dump())
    if "recover_real" in PRESETS[name]:
        del default["recover_real"]
        default |= leaves({"recover_real": RecoverConfig().model_dump()})
    expected = default | leaves(PRESETS[name]) | {"summary": loaded["summary"]}
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
    queued = config.squeeze.batch * (2 if config.squeeze.objective.symmetric else 1)
    assert config.squeeze.objective.queue % queued == 0
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
