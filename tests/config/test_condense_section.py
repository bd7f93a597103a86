"""The section of condense: the defaults of the paper, and what it refuses."""

import pytest
from pydantic import ValidationError

from scdd.augment.dsa import OPERATIONS
from scdd.config.condense import CondenseConfig


def test_the_defaults_are_those_of_the_paper():
    cfg = CondenseConfig()
    assert (cfg.iterations, cfg.batch, cfg.arch, cfg.start) == (20_000, 256, "convnet", "real")
    assert (cfg.lr, cfg.momentum) == (1.0, 0.5)
    assert cfg.dsa == ("colour", "crop", "cutout", "flip", "scale", "rotate")


def test_every_operation_that_can_be_named_exists():
    assert tuple(OPERATIONS) == CondenseConfig().dsa


@pytest.mark.parametrize(
    "wrong",
    [
        {"dsa": ["crop", "blur"]},
        {"dsa": ["crop", "flip", "crop"]},
        {"iterations": 0},
        {"lr": 0},
        {"momentum": 1},
        {"batch": 0},
        {"group": 0},
        {"start": "median"},
        {"arch": 3},
    ],
)
def test_nonsense_is_refused(wrong: dict):
    with pytest.raises(ValidationError):
        CondenseConfig(**wrong)
