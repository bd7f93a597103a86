"""Files of every layout give the features of the net they were made of."""

from typing import Any

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from scdd.foreign import load_backbone
from tests.foreign import layouts
from tests.foreign.conftest import images, refusal, same, state_of
from tests.foreign.layouts import LARGE_STEM, VARIANTS, WITH_HEAD, filled, under, write

WRITERS = [(writer, name) for name, writer in LARGE_STEM.items()] + list(VARIANTS.items())


@pytest.mark.parametrize(("writer", "name"), WRITERS, ids=[w.__name__ for w, _ in WRITERS])
def test_a_file_of_this_layout_gives_the_features_of_its_net(writer, name, net, tmp_path):
    content = writer(*state_of(net))
    loaded = load_backbone(write(tmp_path / "file.pth.tar", content), "resnet18", 32)
    assert same(loaded, net)
    assert loaded.backbone.num_classes == 0 and loaded.backbone.stem == "stock"
    assert loaded.report.layout.startswith(name)
    assert loaded.report.matched == 100 and loaded.report.missing == ()
    if writer in WITH_HEAD:
        assert loaded.head is not None
        assert torch.equal(loaded.head[0], net.fc.weight) and torch.equal(
            loaded.head[1], net.fc.bias
        )
    else:
        assert loaded.head is None and "head: none" in str(loaded.report)


def test_a_report_counts_what_was_ignored_by_where_it_stood(net, tmp_path):
    path = write(tmp_path / "file", layouts.moco_v2(*state_of(net)))
    report = load_backbone(path, "resnet18", 32).report
    assert report.ignored == {
        "encoder_q.fc.": 4,
        "encoder_k.": 124,
        "queue": 1,
        "queue_ptr": 1,
        "optimizer.": 1,
    }
    assert report.lines() == [
        "layout: MoCo v2, under 'state_dict.encoder_q.'",
        "matched: all 100 backbone weights",
        "ignored: encoder_k. 124, encoder_q.fc. 4, queue 1, queue_ptr 1, optimizer. 1",
        "missing: nothing",
        "head: none",
        "stem: stock",
    ]


def test_safetensors_of_others_are_read_too(net, tmp_path):
    backbone, head = state_of(net)
    save_file({**backbone, **head}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = load_backbone(tmp_path / "model.safetensors", "resnet18", 32)
    assert same(loaded, net) and loaded.head is not None


def test_counters_of_batches_may_be_missing(net, tmp_path):
    backbone, _ = state_of(net)
    kept = {k: v for k, v in backbone.items() if not k.endswith("num_batches_tracked")}
    loaded = load_backbone(write(tmp_path / "file", kept), "resnet18", 32)
    assert same(loaded, net) and len(loaded.report.missing) == 20
    assert loaded.backbone.state_dict()["bn1.num_batches_tracked"] == 0
    assert "missing: 20 batch counters" in str(loaded.report)


def test_weights_in_half_precision_become_single(net, tmp_path):
    halves = {k: v.half() if v.is_floating_point() else v for k, v in state_of(net)[0].items()}
    loaded = load_backbone(write(tmp_path / "file", halves), "resnet18", 32)
    assert {p.dtype for p in loaded.backbone.parameters()} == {torch.float32}
    assert torch.equal(loaded.backbone.conv1.weight, halves["conv1.weight"].float())


@pytest.mark.parametrize("arch", ["resnet18", "resnet8"])
def test_timm_and_small_nets_of_our_own_names_are_flat_too(arch, tiny, tmp_path):
    theirs: Any = timm.create_model("resnet18", num_classes=3) if arch == "resnet18" else tiny
    loaded = load_backbone(write(tmp_path / "file", theirs.eval().state_dict()), arch, 32)
    assert same(loaded, theirs) and loaded.head is not None


def test_a_vit_of_timm_and_a_regnet_of_torchvision_fit_into_our_wrappers(tmp_path):
    vit: Any = timm.create_model("vit_tiny_patch16_224", num_classes=4).eval()
    regnet: Any = torchvision.models.regnet_x_400mf(num_classes=4).eval()
    for arch, theirs in (("vit_tiny", vit), ("regnet_x_400mf", regnet)):
        path = write(tmp_path / "file", theirs.state_dict())
        loaded = load_backbone(path, arch, 224)
        assert loaded.head is not None
        with torch.no_grad():
            ours = loaded.backbone.eval()(images(224)) @ loaded.head[0].T + loaded.head[1]
            torch.testing.assert_close(ours, theirs(images(224)), rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["module", "_orig_mod", "net", "a_b", "encoder", "x0"]), max_size=4),
    st.lists(st.sampled_from(["state_dict", "model", "weights", "ema"]), max_size=3),
    st.lists(st.sampled_from(["queue", "loss.center", "fc.0.weight", "bn9.weight"]), unique=True),
)
def test_any_prefix_in_any_nesting_is_found(tmp_path_factory, tiny, prefix, nesting, beside):
    backbone, _ = state_of(tiny)
    content: Any = under("".join(f"{part}." for part in prefix), backbone)
    content |= {name: filled(3, 3) for name in beside}
    for key in nesting:
        content = {"epoch": 3, key: content, "optimizer": layouts.OPTIMIZER}
    path = write(tmp_path_factory.mktemp("nested") / "file", content)
    loaded = load_backbone(path, "resnet8", 32)
    assert same(loaded, tiny) and loaded.head is None
    assert loaded.report.matched == len([k for k in backbone if "num_batches" not in k])


def test_wrappers_inside_a_name_are_looked_through(tiny, tmp_path):
    backbone, _ = state_of(tiny)
    inside = {
        f"backbone._orig_mod.{k}".replace("layer1.", "layer1.module."): v
        for k, v in backbone.items()
    }
    assert same(load_backbone(write(tmp_path / "file", inside), "resnet8", 32), tiny)


# Which of two.


def test_the_lesser_net_is_not_taken_where_the_better_one_is_damaged(net, tmp_path):
    backbone, head = state_of(net)
    for writer, key in (
        (layouts.moco_v2, "module.encoder_q.layer4.1.conv2.weight"),
        (layouts.moco_v3, "module.base_encoder.layer4.1.conv2.weight"),
        (layouts.solo_learn, "backbone.layer4.1.conv2.weight"),
        (layouts.lightly_dino, "backbone.layer4.1.conv2.weight"),
    ):
        content = writer(backbone, head)
        del content["state_dict"][key]
        assert f"weight '{key.removeprefix('module.')}' is missing" in refusal(
            write(tmp_path / "file", content)
        )
    content = layouts.dino_full(backbone, head)
    del content["teacher"]["module.backbone.bn1.weight"]
    assert "found DINO, full" in refusal(write(tmp_path / "file", content))


def test_a_student_alone_is_taken(net, tmp_path):
    backbone, _ = state_of(net)
    path = write(tmp_path / "file", {"student": under("module.backbone.", backbone)})
    assert same(load_backbone(path, "resnet18", 32), net)


def test_two_complete_nets_that_nothing_tells_apart_are_refused(tiny, tmp_path):
    backbone, _ = state_of(tiny)
    both = {**under("online.", backbone), **under("target.", backbone)}
    sentence = refusal(write(tmp_path / "file", both), "resnet8")
    assert "several complete networks, under 'online.' and 'target.'; save the one" in sentence
