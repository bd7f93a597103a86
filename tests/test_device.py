"""Which device a name stands for."""

import pytest
import torch

from scdd.device import resolve_device
from scdd.errors import ConfigError


def test_auto_is_the_accelerator_if_there_is_one():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_cpu_is_always_there():
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_numbered_accelerator_is_taken():
    assert resolve_device("cuda:0") == torch.device("cuda:0")


@pytest.mark.parametrize("name", ["banana", "", "CPU", "cuda:99", "cuda:-1", "cpu:x", "xpu:77"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str):
    with pytest.raises(ConfigError, match="it has cpu") as caught:
        resolve_device(name)
    assert str(caught.value).startswith(f"--device {name}: cannot be used")


def test_a_device_that_holds_no_data_is_refused():
    with pytest.raises(ConfigError, match="--device meta"):
        resolve_device("meta")
