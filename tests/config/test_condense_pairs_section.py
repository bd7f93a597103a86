"""Settings of learnt pairs: what is published, and what does not go together."""

from typing import Any

import pytest
from pydantic import ValidationError

from scdd.config.condense_pairs import CondensePairsConfig, PretrainConfig


def test_the_defaults_are_those_of_boost_on_32_px_and_of_the_released_krr_st():
    cfg = CondensePairsConfig()
    assert (cfg.budget_n, cfg.steps, cfg.batch, cfg.lr, cfg.final_lr) == (
        100,
        30_000,
        1024,
        1e-3,
        0,
    )
    assert (cfg.pool.models, cfg.pool.age, cfg.pool.arch) == (10, 1000, "convnet_krr")
    assert (cfg.pool.lr, cfg.pool.momentum, cfg.pool.weight_decay) == (0.1, 0.9, 1e-3)
    assert (cfg.ridge, cfg.crop_padding, cfg.approximate.hidden) == (1e-6, 4, 4)
    assert cfg.turns == (0, 1, 2, 3)
    student = PretrainConfig()
    assert (student.epochs, student.batch, student.lr) == (1000, 256, 0.1)
    assert (student.momentum, student.weight_decay) == (0.9, 1e-3)
    probe = student.probe
    assert (probe.iterations, probe.batch, probe.lr, probe.momentum) == (5000, 512, 0.2, 0.9)


@pytest.mark.parametrize(
    "changes",
    [
        {"parameterisation": "raw", "rotations": False, "approximation": False},
        {"rotations": False, "approximation": False},
        {},
    ],
)
def test_the_three_rows_of_the_ablation_are_settings(changes: dict[str, Any]):
    CondensePairsConfig.model_validate(changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parameterisation": "raw", "approximation": False}, "rotations is true, but"),
        ({"rotations": False}, "approximation is true, but rotations is false"),
        ({"start_space": "unit"}, "start_space is unit, but bases start from normalised images"),
        ({"final_lr": 1.0}, "final_lr is 1, above lr"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], said: str):
    with pytest.raises(ValidationError, match=said):
        CondensePairsConfig.model_validate(changes)
