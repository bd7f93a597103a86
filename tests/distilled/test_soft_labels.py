"""Soft-label codecs."""

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scdd.config.relabel import RelabelConfig
from scdd.distilled import codec_of, make_codec
from scdd.errors import ConfigError, RunError

LARGEST = 65504.0


def labels(classes: st.SearchStrategy[int], largest: float = LARGEST) -> st.SearchStrategy:
    """Float32 logits [2, 3, C]."""
    values = st.floats(-largest, largest, width=32)
    return classes.flatmap(lambda c: arrays(np.float32, (2, 3, c), elements=values))


@given(labels(st.integers(1, 20)))
def test_full_labels_are_the_float16_that_numpy_rounds_to(logits):
    codec = make_codec("full", logits.shape[-1])
    decoded = codec.decode(codec.encode(torch.from_numpy(logits)))
    assert decoded.dtype == torch.float32
    assert np.array_equal(decoded.numpy(), logits.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(("name", "most"), [("int8", 255), ("int4", 15)])
@given(logits=labels(st.integers(1, 20), largest=32000.0))
def test_labels_in_steps_are_half_a_step_away_at_most(name, most, logits):
    codec = make_codec(name, logits.shape[-1])
    stored = codec.encode(torch.from_numpy(logits))
    assert {name: values.dtype for name, values in stored.items()} == {
        "steps": torch.uint8,
        "low": torch.float16,
        "step": torch.float16,
    }
    exact = logits.astype(np.float64)
    low, high = exact.min(-1, keepdims=True), exact.max(-1, keepdims=True)
    # Half a step, the rounding of the smallest logit, and that of the step.
    ulp = np.spacing(np.abs(low).astype(np.float16)).astype(np.float64)
    coarse = np.spacing(((high - low) / most).astype(np.float16)).astype(np.float64)
    bound = (high - low) / (2 * most) + ulp + coarse + 1e-6 * np.abs(exact).max()
    assert (np.abs(codec.decode(stored).double().numpy() - exact) <= bound).all()


def test_int4_puts_two_classes_into_a_byte_the_first_below():
    codec = make_codec("int4", 5)
    stored = codec.encode(torch.tensor([[3.0, 18.0, 5.0, 4.0, 17.0]]))  # Steps of 1 above 3.
    assert stored["steps"].tolist() == [[0xF0, 0x12, 0x0E]]
    assert codec.decode(stored).tolist() == [[3.0, 18.0, 5.0, 4.0, 17.0]]


@given(labels(st.integers(2, 300), largest=1000.0), st.data())
def test_topk_keeps_the_largest_logits_and_the_mass_of_the_others(logits, data):
    classes = logits.shape[-1]
    top = data.draw(st.integers(1, classes - 1))
    temperature = data.draw(st.sampled_from([1.0, 4.0, 20.0]))
    codec = make_codec("topk", classes, {"top": top}, temperature)
    decoded = codec.decode(codec.encode(torch.from_numpy(logits))).double().numpy()
    order = np.argsort(-logits, axis=-1, kind="stable")
    kept, others = order[..., :top], order[..., top:]
    values = np.take_along_axis(logits, kept, -1)
    # Of equal logits any may be kept, so values are compared, not classes.
    ours = np.sort(decoded, axis=-1)[..., ::-1][..., :top]
    assert np.allclose(ours, np.sort(values.astype(np.float16), axis=-1)[..., ::-1], atol=0.51)
    rest = decoded.min(-1)
    mass = temperature * (
        scipy.special.logsumexp(np.take_along_axis(logits, others, -1) / temperature, axis=-1)
        - np.log(classes - top)
    )
    assert (np.abs(rest - mass) <= np.spacing(np.abs(mass).astype(np.float16)) + 1e-4).all()


def test_at_its_temperature_topk_gives_every_kept_class_its_probability():
    logits = 3 * torch.randn(50, 100, generator=torch.Generator().manual_seed(0))
    codec = make_codec("topk", 100, {"top": 10}, temperature=4.0)
    decoded = codec.decode(codec.encode(logits))
    found = torch.from_numpy(scipy.special.softmax(decoded.double().numpy() / 4, axis=-1))
    wanted = torch.from_numpy(scipy.special.softmax(logits.double().numpy() / 4, axis=-1))
    kept = wanted.argsort(-1, descending=True)[:, :10]
    assert torch.allclose(found.gather(1, kept), wanted.gather(1, kept), rtol=2e-3)


@pytest.mark.parametrize(
    ("classes", "dtype"), [(256, torch.uint8), (257, torch.uint16), (65537, torch.int32)]
)
def test_classes_take_as_few_bytes_as_their_number_allows(classes: int, dtype: torch.dtype):
    codec = make_codec("topk", classes, {"top": 2})
    logits = torch.zeros(1, classes)
    logits[0, -1], logits[0, 0] = 2.0, 1.0
    stored = codec.encode(logits)
    assert stored["classes"].dtype == dtype
    assert torch.equal(codec.decode(stored), logits)


@pytest.mark.parametrize(
    ("name", "attributes", "bytes_"),
    [
        ("full", {}, 200),
        ("int8", {}, 104),
        ("int4", {}, 54),
        ("topk", {"top": 10}, 32),
        ("teacher", {}, 0),
    ],
)
def test_the_bytes_of_a_label_are_those_of_its_arrays(name: str, attributes: dict, bytes_: int):
    codec = make_codec(name, 100, attributes)
    stored = codec.encode(torch.randn(1, 100))
    assert sum(values.numel() * values.element_size() for values in stored.values()) == bytes_
    assert codec.bytes_a_label == bytes_


@pytest.mark.parametrize("name", ["full", "int8", "int4", "topk"])
@pytest.mark.parametrize("value", [65505.0, -1e6, 1e30])
def test_a_logit_beyond_float16_is_an_error_of_the_run(name: str, value: float):
    codec = make_codec(name, 2, {"top": 1} if name == "topk" else {})
    with pytest.raises(RunError, match="float16"):
        codec.encode(torch.tensor([[0.0, value]]))


@pytest.mark.parametrize("name", ["full", "int8", "int4", "topk"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_logit_that_is_not_finite_is_an_error_of_the_run(name: str, value: float):
    codec = make_codec(name, 2, {"top": 1} if name == "topk" else {})
    with pytest.raises(RunError, match="not finite"):
        codec.encode(torch.tensor([[0.0, value]]))


@pytest.mark.parametrize(
    ("name", "attributes", "said"),
    [
        ("int3", {}, "codec 'int3' is unknown"),
        ("topk", {}, "top of codec 'topk' is None"),
        ("topk", {"top": 0}, "top is 0, not in 1 .. 4"),
        ("topk", {"top": 5}, "top is 5, not in 1 .. 4"),
        ("topk", {"top": "2"}, "not a number"),
        ("full", {"top": 2}, "codec 'full' has no top"),
    ],
)
def test_a_codec_that_cannot_be_is_refused(name: str, attributes: dict, said: str):
    with pytest.raises(ValueError, match=said):
        make_codec(name, 5, attributes)


def test_the_configuration_names_the_codec():
    assert codec_of(RelabelConfig(codec="hard"), 5) is None
    codec = codec_of(RelabelConfig(codec="topk", top=3), 5)
    assert codec is not None and codec.attributes == {"top": 3}
    with pytest.raises(ConfigError, match=r"relabel\.top is 5, not in 1 \.\. 4"):
        codec_of(RelabelConfig(codec="topk", top=5), 5)
