"""The registry of public checkpoints, and the section that names one of them."""

import pytest
from pydantic import ValidationError

from scdd.config.checkpoint import CheckpointConfig
from scdd.config.known_checkpoints import KNOWN_CHECKPOINTS, find, listing
from scdd.errors import ConfigError
from scdd.models import list_models

# Table 17 of SC-DD: objective, network and epochs to linear accuracy.
TABLE_17 = {
    ("moco_v2", "resnet50", 200): 67.6,
    ("moco_v2", "resnet50", 800): 71.1,
    ("moco_v3", "resnet50", 100): 68.9,
    ("moco_v3", "resnet50", 300): 72.8,
    ("moco_v3", "resnet50", 1000): 74.6,
    ("swav", "resnet50", 100): 72.0,
    ("swav", "resnet50", 200): 73.8,
    ("swav", "resnet50", 400): 74.5,
    ("swav", "resnet50", 800): 75.3,
    ("swav", "resnet50w2", 400): 77.2,
    ("swav", "resnet50w4", 400): 77.4,
    ("swav", "resnet50w5", 400): 77.9,
    ("dino", "resnet50", 800): 75.3,
}
NON_COMMERCIAL = {"moco_v2", "moco_v3", "swav"}


def test_accuracies_are_those_of_table_17():
    listed = {(k.objective, k.arch, k.epochs): k.linear_top1 for k in KNOWN_CHECKPOINTS}
    assert listed == TABLE_17 | {("barlow_twins", "resnet50", 1000): 73.5}


def test_every_checkpoint_is_of_a_network_that_can_be_built_and_has_a_name_of_its_own():
    assert {known.arch for known in KNOWN_CHECKPOINTS} <= set(list_models())
    assert len({known.name for known in KNOWN_CHECKPOINTS}) == len(KNOWN_CHECKPOINTS)
    for known in KNOWN_CHECKPOINTS:
        assert find(known.name) is known
        assert known.file is None or known.file.startswith("https://")


def test_licences_that_forbid_commercial_use_are_marked():
    for known in KNOWN_CHECKPOINTS:
        assert known.non_commercial == (known.objective in NON_COMMERCIAL)
        assert known.non_commercial == ("NC" in known.licence)


def test_the_listing_shows_every_checkpoint_its_address_and_its_licence():
    lines = listing().splitlines()
    for known in KNOWN_CHECKPOINTS:
        (row,) = [line for line in lines if line.startswith(f"| {known.name} ")]
        assert f"{known.linear_top1:.1f}" in row and known.licence in row
        assert f"  {known.name}: {known.file}" in lines and known.page in lines
    restricted = next(line for line in lines if line.startswith("For non-commercial use only: "))
    assert "moco_v3_300ep" in restricted and "dino" not in restricted


def test_an_unknown_name_is_answered_with_those_that_are_close():
    with pytest.raises(ConfigError, match=r"unknown checkpoint 'swav_80ep'; did you mean"):
        find("swav_80ep")
    with pytest.raises(ValidationError, match="did you mean"):
        CheckpointConfig(path="x", known="moco_v3_30ep")
    assert CheckpointConfig(path="x", known="moco_v3_300ep").known == "moco_v3_300ep"


def test_every_part_of_a_stem_has_to_be_said():
    for stem in ({"kernel": 3}, {"kernel": 5, "stride": 1, "padding": 1, "max_pool": False}):
        with pytest.raises(ValidationError):
            CheckpointConfig.model_validate({"path": "x", "stem": stem})
