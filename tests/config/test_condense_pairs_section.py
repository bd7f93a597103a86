"""Settings of learnt pairs: what is published, and what does not go together."""

from typing import Any

import pytest
from pydantic import ValidationError

from scdd.config.condense_pairs import CondensePairsConfig, PretrainConfig
from scdd.config.finetune import FinetuneConfig
from scdd.config.load import load_config
from scdd.errors import ConfigError


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


def test_fine_tuning_is_off_and_then_that_of_the_released_krr_st():
    assert PretrainConfig().finetune is None and PretrainConfig().transfer == ()
    tuned = FinetuneConfig()
    assert (tuned.iterations, tuned.batch, tuned.lr, tuned.momentum) == (10_000, 256, 0.01, 0.9)
    assert (tuned.weight_decay, tuned.crop_padding, tuned.flip) == (5e-4, 4, 0.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "pretrain.transfer=[{image_size: 16}, {name: image_folder, root: x, image_size: 32}]",
            "pretrain.transfer.1.image_size is 32, but dataset.image_size is 16, and a network "
            "works at one size; give both the same",
        ),
        (
            "pretrain.transfer=[{image_size: 16, std: [0.2, 0.2, 0.2]}]",
            "pretrain.transfer.0: has a mean or std of its own",
        ),
        ("pretrain.transfer=[{rot: x}]", "pretrain.transfer.0: unknown key 'rot', did you mean"),
        ("pretrain.transfer=[{name: mnist}]", "pretrain.transfer.0.name: input should be"),
        ("pretrain.finetune.steps=9", "pretrain.finetune: unknown key 'steps'"),
        ("pretrain.finetune.batch=1", "pretrain.finetune.batch: input should be"),
        ("pretrain.finetune.crop_padding=16", "crop_padding is 16, but an image has 16 px"),
        ("pretrain.transfer.0.root=x", "has no transfer of its own to change; give the whole"),
    ],
)
def test_a_task_or_a_tuning_that_cannot_be_is_one_sentence(change: str, said: str):
    with pytest.raises(ConfigError) as caught:
        load_config("digits_boost", [change])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_tasks_have_different_names_without_the_folders_they_lie_in():
    tasks = ["{name: image_folder, root: /data/birds, image_size: 16}"] * 2
    cfg = load_config("digits_boost", [f"pretrain.transfer=[{', '.join(tasks)}, {{name: digits}}]"])
    assert cfg.tasks == ("digits", "birds", "birds (2)", "digits (2)")
    assert load_config("digits").tasks == ("digits",)


def test_more_tasks_leave_a_recipe_what_it_is(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("{method: boost, recipe: paper, squeeze: {objective: {name: barlow_twins}}}")
    more = load_config(str(path), ["pretrain.transfer=[{name: digits}]"])
    assert more.recipe == "paper" and len(more.transfer) == 1
    assert load_config(str(path), ["pretrain.finetune={}"]).recipe == "custom"
