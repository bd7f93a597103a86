"""Files with code in them, damaged files and files of something else are one sentence."""

import argparse
import io
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from scdd.errors import CheckpointError
from scdd.foreign import load_backbone
from scdd.models import create_model
from tests.foreign import layouts
from tests.foreign.conftest import refusal, same, state_of
from tests.foreign.layouts import filled, write
from tests.pickled_code import Code


def test_pickled_code_is_refused_and_does_not_run(net, tmp_path):
    for content in (
        {"state_dict": state_of(net)[0], "hyper_parameters": Code(tmp_path / "ran")},
        Code(tmp_path / "ran"),
    ):
        sentence = refusal(write(tmp_path / "file", content))
        assert "holds pickled code (posix.mkdir), which scdd never runs" in sentence
        assert not (tmp_path / "ran").exists()
    assert "pickled code (torch.nn.modules" in refusal(write(tmp_path / "net", nn.Linear(2, 2)))


def test_allowing_arguments_in_a_file_allows_nothing_else_and_ends_with_the_file(net, tmp_path):
    path = write(tmp_path / "file", layouts.dino_full(*state_of(net)))
    load_backbone(path, "resnet18", 32)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
    path = write(path, {"args": argparse.Namespace(hook=Code(tmp_path / "ran"))})
    assert "pickled code (posix.mkdir)" in refusal(path) and not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.load:UserWarning")
def test_a_program_of_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "program.pt")
    assert "a TorchScript program" in refusal(tmp_path / "program.pt")


def test_a_file_that_is_missing_empty_or_no_weights_is_refused(tmp_path):
    assert "cannot be read (No such file or directory)" in refusal(tmp_path / "nowhere.pth")
    assert "cannot be read (Is a directory)" in refusal(tmp_path)
    for content in (b"", b"PK\x03\x04", b"garbage" * 30, b"\x80\x02}q\x00."):
        (tmp_path / "file").write_bytes(content)
        assert "no weights file" in refusal(tmp_path / "file")
    for nothing in ({}, [1, 2], 3, {"epoch": 3}):
        assert "holds no weights by name" in refusal(write(tmp_path / "file", nothing))
    keys = refusal(
        write(tmp_path / "file", {"state_dict": {f"block.{n}": filled(2) for n in range(9)}})
    )
    assert "holds no network with the names of resnet18 (its keys: block.0, block.1," in keys


def test_a_file_cut_or_changed_anywhere_is_refused_or_read_and_never_crashes(tmp_path):
    net = create_model("resnet8", 0, 32)
    for legacy in (False, True):
        buffer = io.BytesIO()
        torch.save(net.state_dict(), buffer, _use_new_zipfile_serialization=not legacy)
        check_damage(buffer.getvalue(), tmp_path / "file.pth")
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, tmp_path / "whole")
    check_damage((tmp_path / "whole").read_bytes(), tmp_path / "file.safetensors")


def check_damage(whole: bytes, path: Path) -> None:
    dice = random.Random(0)
    for trial in range(30):
        data = bytearray(whole)
        if trial % 2:
            del data[dice.randrange(len(data)) :]
        else:
            data[dice.randrange(1000)] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
        try:
            load_backbone(path, "resnet8", 32)
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: ")
        else:
            assert trial % 2 == 0, "a file that is cut short is not read"


def test_values_that_no_training_leaves_are_refused_by_the_name_of_the_weight(net, tmp_path):
    state = net.state_dict()
    whole = {key: tensor.long() for key, tensor in state.items()}
    found = refusal(write(tmp_path / "file", whole))
    assert "'conv1.weight' has int64 values, which are no weights of a net" in found
    key = "layer2.0.bn1.running_var"
    negative = state | {key: -state[key]}
    found = refusal(write(tmp_path / "file", negative))
    assert f"'{key}' has negative variances, which no training leaves" in found
    infinite = state | {key: state[key] / 0}
    found = refusal(write(tmp_path / "file", infinite))
    assert f"'{key}' has values that are not finite; the training that wrote it had" in found


def test_a_flipped_bit_in_a_weight_is_noticed(net, tmp_path):
    path = write(tmp_path / "file", net.state_dict())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "is no weights file of torch.save or safetensors, or is cut short" in refusal(path)


def test_a_file_of_torch_save_is_read_whatever_its_name(net, tmp_path):
    path = write(tmp_path / "weights.safetensors", net.state_dict())
    assert same(load_backbone(path, "resnet18", 32), net)
