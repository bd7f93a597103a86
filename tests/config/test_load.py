"""Configurations from YAML and presets: what is taken, and what each way of reading checks."""

import math
from pathlib import Path

import pytest

from scdd.config.load import (
    check,
    find_config,
    load_config,
    posttrain_config,
    read_run_config,
    read_yaml,
)
from scdd.config.posttrain import PosttrainConfig
from scdd.config.run import RunConfig
from scdd.errors import ConfigError


def test_nothing_at_all_is_the_preset_digits():
    assert find_config(None).name == "digits.yaml"
    assert load_config(None) == load_config("digits")


def test_a_file_is_read_and_what_it_leaves_out_has_its_default(write):
    config = load_config(write("seed: 3\nrecover: {iterations: 7, betas: [0.1, 0.2]}\n"))
    assert (
        config.seed == 3 and config.recover.iterations == 7 and config.recover.betas == (0.1, 0.2)
    )
    assert config.recover.lr == 0.1 and config.squeeze == RunConfig().squeeze


def test_a_preset_wins_over_a_file_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text("seed: 99")
    assert load_config("digits").seed != 99


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E-3", 1e-3), ("5e-04", 5e-4), ("1.0e-3", 1e-3), ("2", 2.0), (".5", 0.5)],
)
def test_exponents_are_numbers_although_yaml_takes_some_for_text(text: str, value: float, write):
    assert load_config(write(f"recover: {{lr: {text}}}")).recover.lr == value
    assert load_config(None, [f"recover.lr={text}"]).recover.lr == value
    assert load_config(None, [f"probe.l2=[{text}]"]).probe.l2 == (value,)


def test_a_folder_without_a_configuration_is_no_run(tmp_path: Path):
    assert read_run_config(tmp_path) is None
    (tmp_path / "config.yaml").write_text("ipcs: 3")
    assert read_run_config(tmp_path) is None, "somebody's configuration is not yet a run"
    (tmp_path / "environment.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"config\.yaml: unknown key 'ipcs', did you mean 'ipc'"):
        read_run_config(tmp_path)


def test_training_settings_for_a_file_are_those_of_its_run_with_changes():
    base = PosttrainConfig(lr=0.5, epochs=9)
    changed = posttrain_config(base, ["epochs=4", "labels=[hard]"])
    assert (changed.lr, changed.epochs, changed.labels) == (0.5, 4, ("hard",))
    assert posttrain_config(None, []) == PosttrainConfig()
    with pytest.raises(ConfigError, match="--set epoch=4: posttrain: unknown key 'epoch', did you"):
        posttrain_config(base, ["epoch=4"])


def test_validation_alone_names_its_place():
    with pytest.raises(ConfigError, match=r"^here: unknown key 'x'"):
        check({"x": 1}, "here")
    assert check({}, "here") == RunConfig()


def test_reading_yaml_alone_checks_no_keys(write):
    assert read_yaml(Path(write("x: {y: .inf}"))) == {"x": {"y": math.inf}}
