"""Every section of a configuration is frozen and refuses unknown keys."""

from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from scdd.config.objectives import DinoConfig, MocoV2Config, SupervisedConfig
from scdd.config.run import RunConfig
from scdd.config.squeeze import SqueezeConfig
from scdd.config.views import ViewConfig


def models(model: type[BaseModel]) -> set[type[BaseModel]]:
    """A model and all models in its fields, however deep in unions and lists."""
    found = {model}
    parts: list[Any] = [field.annotation for field in model.model_fields.values()]
    while parts:
        part = parts.pop()
        if isinstance(part, type) and issubclass(part, BaseModel):
            found |= models(part)
        parts += get_args(part)
    return found


NEEDED = {"path": "file", "kernel": 3, "stride": 1, "padding": 1, "max_pool": False}
"""A value of each key that has no default."""


@pytest.mark.parametrize("model", sorted(models(RunConfig), key=str))
def test_every_section_is_frozen_and_knows_no_other_keys(model: type[BaseModel]):
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    needed = {name: NEEDED[name] for name in required}
    section = model.model_validate(needed)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(section, next(iter(model.model_fields)), 1)
    with pytest.raises(ValidationError, match="extra"):
        model.model_validate({**needed, "no_such_key": 1})


def test_all_sections_are_found():
    found = models(RunConfig)
    assert {MocoV2Config, DinoConfig, SupervisedConfig, ViewConfig, SqueezeConfig} <= found
    assert len(found) >= 15
