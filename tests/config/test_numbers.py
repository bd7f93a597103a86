"""Every numeric setting: through YAML and back, and in its range."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from scdd.config.load import load_config, read_run_config
from scdd.errors import ConfigError
from tests.config.conftest import refusal


def numeric_fields(model: BaseModel, prefix: str = "") -> dict[str, int | float]:
    """Every numeric setting of a configuration, by dotted key."""
    found: dict[str, int | float] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            found |= numeric_fields(value, f"{prefix}{name}.")
        elif isinstance(value, tuple):
            for number, item in enumerate(value):
                if isinstance(item, BaseModel):
                    found |= numeric_fields(item, f"{prefix}{name}.{number}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + name] = value
    return found


def at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config[int(name)] if isinstance(config, tuple) else getattr(config, name)
    return config


@given(st.sampled_from(sorted(numeric_fields(load_config(None)))), st.data())
def test_any_numeric_override_survives_a_round_trip_through_yaml(tmp_path_factory, key, data):
    before = at(load_config(None), key)
    numbers = (
        st.integers(1, 2**40)
        if isinstance(before, int)
        else st.floats(1e-12, 1e12, allow_subnormal=False) | st.floats(1e-6, 1)
    )
    value = data.draw(numbers)
    try:
        changed = load_config(None, [f"{key}={value}"])
    except ConfigError as error:
        between_keys = (
            "squeeze: objective.queue is ",
            "squeeze: objective.key_splits is ",
            "squeeze.views: moco_v2 wants 2 of an image",
            "posttrain: micro_batches is ",
            "recover: merges is ",
            "recover: warmup is ",
            "recover_real: merges is ",
            "recover_real: warmup is ",
        )
        starts = (f"{key}: input should be ", *between_keys)
        allowed = tuple(f"--set {key}={value}: {start}" for start in starts)
        assert str(error).startswith(allowed)
        return
    assert at(changed, key) == value
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    path.write_text(yaml.safe_dump(changed.model_dump(mode="json"), sort_keys=False))
    path.with_name("environment.json").write_text("{}")
    assert load_config(str(path)) == changed == read_run_config(path.parent)
    others = numeric_fields(load_config(None)) | {key: value}
    assert numeric_fields(changed) == others


@pytest.mark.parametrize("value", ["-1", ".nan", "-.inf", "nonsense", "[1]", "{a: 1}"])
def test_no_number_takes_nonsense(value: str):
    for key in numeric_fields(load_config(None)):
        sentence = refusal(None, [f"{key}={value}"])
        assert sentence.startswith(f"--set {key}={value}: {key}: input should")


@pytest.mark.parametrize("value", [".inf", "true"])
def test_no_number_takes_infinity_or_a_truth_value(value: str):
    for key in numeric_fields(load_config(None)):
        assert refusal(None, [f"{key}={value}"]).startswith(f"--set {key}={value}: {key}: ")


@pytest.mark.parametrize("value", ["[1.0, 0.3]", "[-1, 1]", "[0, 0]"])
def test_a_range_is_positive_and_in_order(value: str):
    sections = ("squeeze.views.0", "probe", "recover", "relabel")
    for key in [f"{section}.crop_scale" for section in sections] + ["squeeze.views.0.blur_sigma"]:
        assert refusal(None, [f"{key}={value}"]).startswith(f"--set {key}={value}: {key}: ")


def test_a_crop_is_no_larger_than_the_image():
    for section in ("squeeze.views.0", "probe", "recover", "relabel"):
        refusal(None, [f"{section}.crop_scale=[0.5, 1.5]"])


def test_a_cosine_may_be_stretched_but_not_shrunk():
    assert load_config(None, ["posttrain.stretch=1"]).posttrain.stretch == 1
    refusal(None, ["posttrain.stretch=0.5"])
