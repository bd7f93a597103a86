"""Soft-label codecs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scdd.distilled import CODECS
from scdd.errors import RunError


@given(st.lists(st.floats(-65504, 65504, width=32), min_size=1, max_size=20))
def test_full_labels_are_the_float16_that_numpy_rounds_to(values):
    logits = torch.tensor(values)
    codec = CODECS["full"]
    decoded = codec.decode(codec.encode(logits))
    assert decoded.dtype == torch.float32
    wanted = np.array(values, dtype=np.float32).astype(np.float16).astype(np.float32)
    assert np.array_equal(decoded.numpy(), wanted)


@pytest.mark.parametrize("value", [65505.0, -1e6, 1e30])
def test_a_logit_beyond_float16_is_an_error_of_the_run(value: float):
    with pytest.raises(RunError, match="float16"):
        CODECS["full"].encode(torch.tensor([[0.0, value]]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_logit_that_is_not_finite_is_an_error_of_the_run(value: float):
    with pytest.raises(RunError, match="not finite"):
        CODECS["full"].encode(torch.tensor([[0.0, value]]))
