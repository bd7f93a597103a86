"""Weights files and rolling checkpoints: what comes back, and what is refused."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from scdd.checkpoint import NO_CHECKPOINT, Checkpoint, fill, load_weights, save_weights
from scdd.errors import CheckpointError
from tests.damaged_copies import assert_read_or_refused
from tests.pickled_code import Code

ROOT = Path(__file__).resolve().parent.parent

# A limit on the size of files stands in for a full disk: both end a write with an error.
FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from typing import Any
from scdd.checkpoint import Checkpoint, save_weights
from scdd.errors import RunError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
path, big = Path(sys.argv[1]), {"a": torch.zeros(100_000)}
try:
    save_weights(path, big, {}) if path.suffix == ".safetensors" else Checkpoint(path, 0).save(big)
except RunError as error:
    print(error)
"""

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8]


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@given(
    st.dictionaries(
        st.text("abc._", min_size=1, max_size=6),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        max_size=4,
    ),
    st.dictionaries(st.text(max_size=4), st.integers() | st.text() | st.lists(st.booleans())),
)
def test_weights_and_what_is_said_about_them_come_back(tmp_path_factory, entries, about):
    draw = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randint(100, tuple(shape), generator=draw).to(dtype)
        for name, (dtype, shape) in entries.items()
    }
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_weights(path, weights, about)
    found, said = load_weights(path)
    assert said == about and found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_a_view_into_a_larger_tensor_is_stored_as_itself(tmp_path: Path):
    base = torch.arange(12.0).view(3, 4).requires_grad_(True)
    save_weights(tmp_path / "w", {"row": base[1], "column": base[:, 2], "whole": base.T}, {})
    found, _ = load_weights(tmp_path / "w")
    assert torch.equal(found["row"], base[1]) and torch.equal(found["column"], base[:, 2])
    assert torch.equal(found["whole"], base.T)


def test_a_model_filled_from_a_file_is_the_same_model(tmp_path: Path):
    model, other = net(), net()
    save_weights(tmp_path / "w", model.state_dict(), {})
    assert fill(other, load_weights(tmp_path / "w")[0], tmp_path / "w") is other
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_a_missing_file_is_refused(tmp_path: Path):
    path = tmp_path / "none.safetensors"
    with pytest.raises(CheckpointError, match="cannot be read as safetensors") as caught:
        load_weights(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x00" * 100, b"\xff" * 100])
def test_a_foreign_file_is_refused(content: bytes, tmp_path: Path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_weights(path)


def test_a_file_of_other_software_is_refused(tmp_path: Path):
    save_file({"a": torch.zeros(2)}, tmp_path / "w", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match="holds no scdd metadata; give a file that scdd wrote"
    ):
        load_weights(tmp_path / "w")


def test_metadata_that_is_no_json_is_refused(tmp_path: Path):
    save_file({"a": torch.zeros(2)}, tmp_path / "w", metadata={"scdd": "{not json"})
    with pytest.raises(CheckpointError):
        load_weights(tmp_path / "w")


def test_a_weights_file_cut_anywhere_is_refused(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.arange(30.0), "b": torch.ones(3, 3)}, {"arch": "x"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load_weights(path)


def test_a_weights_file_with_a_damaged_header_is_refused_or_read_and_never_crashes(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.arange(30.0)}, {"arch": "x", "classes": ["1", "2"]})
    whole, dice = path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(400):
        data = bytearray(whole)
        data[dice.randrange(header)] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
        try:
            load_weights(path)
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: w.pop("3.weight"), "weight '3.weight' is missing; is it another network?"),
        (lambda w: w.pop("1.running_mean"), "weight '1.running_mean' is missing"),
        (
            lambda w: w.update({"3.weight": torch.zeros(5, 4)}),
            "weight '3.weight' has shape [5, 4], the network wants [2, 4]; is it for another "
            "architecture or class count?",
        ),
        (lambda w: w.update(extra=torch.zeros(1)), "weight 'extra' has no place in the network"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_the_model_is_untouched(change, sentence: str):
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = {name: tensor + 1 for name, tensor in before.items()}
    change(weights)
    with pytest.raises(CheckpointError) as caught:
        fill(model, weights, Path("some/file"))
    assert str(caught.value).startswith(f"some/file: {sentence}")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_checkpoint_brings_back_every_bit_of_a_training_state(tmp_path: Path):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 3, 3, 3)).sum().backward()
    optimizer.step()
    draw = torch.Generator().manual_seed(5)
    state: dict[str, Any] = {
        "step": 7,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "draw": draw.get_state(),
    }
    checkpoint = Checkpoint(tmp_path / "c.pt", 0)
    assert checkpoint.load() is None
    checkpoint.save(state)
    found = Checkpoint(tmp_path / "c.pt", 5).load()
    assert found is not None and found["step"] == 7
    assert torch.equal(found["draw"], state["draw"])
    for name, tensor in model.state_dict().items():
        assert torch.equal(found["model"][name], tensor)
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            assert torch.equal(found["optimizer"]["state"][index][name], value)
    checkpoint.remove()
    checkpoint.remove()
    assert checkpoint.load() is None and os.listdir(tmp_path) == []


def parts() -> dict[str, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
    return {"net": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)}


def train(parts: dict[str, Any], steps: int) -> list[list[float]]:
    for _ in range(steps):
        parts["optimizer"].zero_grad()
        parts["net"](torch.ones(1, 3)).pow(2).sum().backward()
        parts["optimizer"].step()
    return parts["net"].weight.tolist()


def test_parts_restored_from_a_checkpoint_go_on_as_if_never_stopped(tmp_path: Path):
    whole = train(parts(), 5)
    killed, again = parts(), parts()
    train(killed, 3)
    Checkpoint(tmp_path / "c.pt", 0).save_parts(killed, 3)
    assert Checkpoint(tmp_path / "c.pt", 0).restore(again) == 3
    assert train(again, 2) == whole


def test_without_a_checkpoint_parts_stay_as_they_are(tmp_path: Path):
    fresh = parts()
    before = fresh["net"].weight.tolist()
    for checkpoint in (Checkpoint(tmp_path / "c.pt", 0), NO_CHECKPOINT):
        assert checkpoint.restore(fresh) == 0
    assert fresh["net"].weight.tolist() == before


def test_a_checkpoint_may_count_something_else_than_steps(tmp_path: Path):
    trained = parts()
    states = {name: part.state_dict() for name, part in trained.items()}
    torch.save({"epoch": 2, **states}, tmp_path / "a")
    assert Checkpoint(tmp_path / "a", 0).restore(parts(), "epoch") == 2
    Checkpoint(tmp_path / "b", 0).save_parts(trained, 4, "epoch")
    assert torch.load(tmp_path / "b", weights_only=True).keys() == {"epoch", "net", "optimizer"}


def test_a_checkpoint_of_zero_minutes_is_always_due_and_of_hours_never(tmp_path: Path):
    assert Checkpoint(tmp_path / "c", 0).due
    assert not Checkpoint(tmp_path / "c", 600).due
    checkpoint = Checkpoint(tmp_path / "c", 0)
    checkpoint.save({})
    assert checkpoint.due


def test_without_a_path_nothing_is_due_and_nothing_is_there():
    assert not NO_CHECKPOINT.due and NO_CHECKPOINT.load() is None
    NO_CHECKPOINT.remove()


def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path: Path):
    path = tmp_path / "c.pt"
    torch.save({"step": 3, "images": Code(tmp_path / "ran")}, path)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(path, 0).load()
    assert str(caught.value).startswith(f"{path}: ")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"garbage" * 30])
def test_a_checkpoint_that_is_none_is_refused_saying_what_to_do(content: bytes, tmp_path: Path):
    path = tmp_path / "c.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged; delete it to start this step again"):
        Checkpoint(path, 0).load()


def test_a_checkpoint_cut_or_flipped_anywhere_is_refused_or_read_and_never_crashes(tmp_path: Path):
    path = tmp_path / "c.pt"
    optimizer = {"state": {0: {"step": torch.ones(())}}, "param_groups": [{"lr": 0.1}]}
    state = {"step": 3, "images": torch.ones(2, 3, 4, 4), "optimizer": optimizer}
    Checkpoint(path, 0).save(state)
    assert_read_or_refused(path, 300, lambda: Checkpoint(path, 0).load())


@pytest.mark.parametrize("name", ["w.safetensors", "c.pt"])
def test_a_full_disk_is_one_sentence_and_the_old_file_stays(name: str, tmp_path: Path):
    path = tmp_path / name
    path.write_text(json.dumps("old"))
    child = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip().startswith(f"{path}: no space left to write it")
    assert json.loads(path.read_text()) == "old" and os.listdir(tmp_path) == [name]
