"""Files of every layout give the features of the net they were made of, or one clear sentence."""

import argparse
import copy
import io
import os
import random
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from scdd.checkpoint import save_weights
from scdd.config.checkpoint import CheckpointConfig
from scdd.config.known_checkpoints import IMAGENET_MEAN, IMAGENET_STD, SWAV_STD
from scdd.config.stem import STOCK, Stem
from scdd.errors import CheckpointError, ConfigError
from scdd.foreign import load_backbone, squeezed_from
from scdd.models import create_model
from tests.foreign import layouts
from tests.foreign.layouts import LARGE_STEM, VARIANTS, WITH_HEAD, filled, under, write

SMALL = Stem(kernel=3, stride=1, padding=1, max_pool=False)
WRITERS = [(writer, name) for name, writer in LARGE_STEM.items()] + list(VARIANTS.items())


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """A ResNet-18 for large images with a classifier of 7 classes."""
    torch.manual_seed(0)
    return layouts.trained(torchvision.models.resnet18(num_classes=7))


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(1)
    return layouts.trained(layouts.small_resnet18())


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    """The smallest net of ours, whose names are also those of other people's CIFAR nets."""
    torch.manual_seed(2)
    return layouts.trained(create_model("resnet8", 7, 32))


def state_of(net: nn.Module) -> tuple[layouts.State, layouts.State]:
    head = {k: v for k, v in net.state_dict().items() if k.startswith("fc.")}
    return layouts.backbone(net), head


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(5))


def features(net: nn.Module) -> torch.Tensor:
    """Of a net whose classifier is called fc, before it; the classifier itself stays as it is."""
    without: Any = copy.deepcopy(net)
    without.fc = nn.Identity()
    without = without.eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        return without(images())


def same(loaded: Any, net: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(loaded.backbone.eval()(images()), features(net))


def refusal(path: Path, arch: str = "resnet18", **kwargs: Any) -> str:
    with pytest.raises(CheckpointError) as error:
        load_backbone(path, arch, 32, **kwargs)
    sentence = str(error.value)
    assert sentence.startswith(f"{kwargs.get('head') or path}: ") and "\n" not in sentence
    return sentence


# Layouts.


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


def tensors_in(value: Any) -> int:
    if isinstance(value, dict):
        return sum(tensors_in(item) for item in value.values())
    return isinstance(value, torch.Tensor)


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


# Small stems, whose geometry the keys do not carry.


@pytest.mark.parametrize(
    ("writer", "layout"),
    [
        (layouts.moco_notebook, "MoCo, CIFAR notebook"),
        (layouts.lightly_children, "lightly, a Sequential of the children of torchvision"),
        (layouts.solo_learn, "solo-learn"),
    ],
)
def test_a_small_stem_is_asked_for_and_then_exact(writer, layout, tmp_path):
    padding = 2 if writer is layouts.solo_learn else 1
    theirs = layouts.trained(layouts.small_resnet18(padding))
    path = write(tmp_path / "file", writer(*state_of(theirs)))
    sentence = refusal(path)
    assert "first convolution is 3x3" in sentence
    assert "squeeze.stem: {kernel: 3, stride: 1, padding: 1, max_pool: false}" in sentence
    assert "1, or 2 as in solo-learn" in sentence
    stem = SMALL.model_copy(update={"padding": padding})
    loaded = load_backbone(path, "resnet18", 32, stem)
    assert same(loaded, theirs) and loaded.report.layout.startswith(layout)
    assert loaded.backbone.stem_spec == stem.model_dump()


@pytest.mark.parametrize("splits", [0, 8])
def test_lightlys_cifar_net_as_a_sequential_has_no_relu_in_its_stem(splits, tmp_path):
    models = pytest.importorskip("lightly.models", reason="lightly is not installed")
    resnet = models.ResNetGenerator("resnet-18", num_splits=splits)
    theirs = nn.Sequential(*list(resnet.children())[:-1], nn.AdaptiveAvgPool2d(1)).train()
    with torch.no_grad():
        theirs(images().repeat(8, 1, 1, 1))  # so that the groups of SplitBatchNorm differ
    content = {
        "state_dict": {
            **under("backbone.", theirs.state_dict()),
            **layouts.mlp("projection_head.layers", 0),
        }
    }
    path = write(tmp_path / "file", content)
    assert "no max-pool, no ReLU" in refusal(path)
    loaded = load_backbone(path, "resnet18", 32, SMALL)
    assert loaded.backbone.stem == "conv 3x3 stride 1, no max-pool, no ReLU"
    assert "children of lightly's CIFAR net" in loaded.report.layout
    with torch.no_grad():
        expected = theirs.eval()(images()).flatten(1)
        torch.testing.assert_close(loaded.backbone.eval()(images()), expected)


def test_the_same_net_not_taken_apart_keeps_its_relu(tmp_path):
    models = pytest.importorskip("lightly.models", reason="lightly is not installed")
    theirs = layouts.trained(models.ResNetGenerator("resnet-18", num_classes=6))
    loaded = load_backbone(write(tmp_path / "file", theirs.state_dict()), "resnet18", 32, SMALL)
    assert loaded.backbone.stem == "conv 3x3 stride 1, no max-pool" and loaded.head is not None
    with torch.no_grad():
        ours = loaded.backbone.eval()(images()) @ loaded.head[0].T + loaded.head[1]
        torch.testing.assert_close(ours, theirs(images()), rtol=1e-4, atol=1e-4)


def test_a_stem_that_contradicts_the_file_is_refused(small, net, tmp_path):
    path = write(tmp_path / "small", layouts.moco_notebook(*state_of(small)))
    pooled = SMALL.model_copy(update={"max_pool": True})
    assert "no max-pool has a place; set squeeze.stem.max_pool: false" in refusal(path, stem=pooled)
    assert "is 3x3, but the stem asks for 7x7" in refusal(path, stem=STOCK)
    path = write(tmp_path / "large", layouts.flat(*state_of(net)))
    assert "is 7x7, but the stem asks for 3x3" in refusal(path, stem=SMALL)


def test_a_large_stem_in_a_sequential_without_place_for_the_pool_is_asked_for(net, tmp_path):
    path = write(tmp_path / "file", layouts.moco_notebook(*state_of(net)))
    assert "{kernel: 7, stride: 2, padding: 3, max_pool: false}" in refusal(path)


def test_swavs_extra_padding_is_the_padding_of_the_stock_stem(net, tmp_path):
    theirs: Any = copy.deepcopy(net)
    theirs.conv1.padding = (2, 2)
    path = write(tmp_path / "file", layouts.swav(*state_of(net)))
    loaded = load_backbone(path, "resnet18", 32)
    with torch.no_grad():
        padded = nn.functional.pad(images(), (1, 1, 1, 1))
        theirs.fc = nn.Identity()
        expected = theirs.to(memory_format=torch.channels_last)(padded)
        assert torch.equal(loaded.backbone.eval()(images()), expected)


def test_other_nets_are_loaded_only_where_their_geometry_is_the_stock_one(tmp_path):
    theirs = torchvision.models.mobilenet_v3_large(num_classes=3)
    path = write(tmp_path / "file", theirs.state_dict())
    assert "weights of a stock mobilenet_v3_large, but at 32 px" in refusal(
        path, "mobilenet_v3_large"
    )
    loaded = load_backbone(path, "mobilenet_v3_large", 128)
    assert loaded.head is not None and loaded.backbone.stem == "stock"
    with pytest.raises(ConfigError, match="has no choice of stem"):
        load_backbone(path, "mobilenet_v3_large", 128, SMALL)


# Heads.


def test_a_head_in_a_second_file_is_taken(net, tmp_path):
    backbone, head = state_of(net)
    path = write(tmp_path / "swav", layouts.swav(backbone, head))
    apart = under("module.linear.", {k.removeprefix("fc."): v for k, v in head.items()})
    for content in (
        {"epoch": 100, "state_dict": apart, "best_acc": 75.3, "optimizer": layouts.OPTIMIZER},
        layouts.linear_evaluation(backbone, head),
    ):
        second = write(tmp_path / "linear", content)
        loaded = load_backbone(path, "resnet18", 32, head=second, classes=7)
        assert loaded.head is not None and torch.equal(loaded.head[0], net.fc.weight)
        assert f"[7, 512] of {second}" in loaded.report.head


def test_a_second_file_without_a_fitting_head_is_refused(net, tmp_path):
    path = write(tmp_path / "swav", layouts.swav(*state_of(net)))
    wide = write(tmp_path / "wide", {"state_dict": layouts.linear("module.linear", 7, 2048)})
    assert "for the 512 features of resnet18 ('linear' takes 2048)" in refusal(path, head=wide)
    deep = write(tmp_path / "deep", {"state_dict": layouts.mlp("module.fc", 0, 2)})
    assert "holds no linear classifier" in refusal(path, head=deep)
    two = {**layouts.linear("a.linear", 7), **layouts.linear("b.linear", 7)}
    assert "several classifiers (a.linear, b.linear)" in refusal(
        path, head=write(tmp_path / "two", two)
    )
    assert "check the path" in refusal(path, head=tmp_path / "nowhere")


def test_a_head_of_another_class_count_is_refused_in_a_second_file_and_passed_over_in_the_first(
    net, tmp_path
):
    backbone, head = state_of(net)
    path = write(tmp_path / "flat", layouts.flat(backbone, head))
    loaded = load_backbone(path, "resnet18", 32, classes=10)
    assert loaded.head is None
    assert loaded.report.head == "fc [7, 512] is not used, as the dataset has 10 classes"
    assert loaded.report.ignored == {"fc.": 2}
    assert "tells 7 classes apart, but the dataset has 10; leave" in refusal(
        path, head=path, classes=10
    )


def test_projections_and_mlps_are_never_taken_for_a_classifier(net, tmp_path):
    backbone, _ = state_of(net)
    for beside in (
        layouts.mlp("fc", 0, 2),
        layouts.linear("projection_head", 128),
        {"fc.weight": filled(9, 512)},
        {"fc.weight": filled(9, 512), "fc.bias": filled(8)},
        {"fc.weight": filled(9, 512, 1, 1), "fc.bias": filled(9)},
        layouts.linear("fc", 9, 64),
    ):
        path = write(tmp_path / "file", {**backbone, **beside})
        assert load_backbone(path, "resnet18", 32).head is None
    encoder = {
        **under("encoder.", backbone),
        **layouts.linear("encoder.fc", 128),
        **layouts.linear("head", 64),
    }
    assert load_backbone(write(tmp_path / "file", encoder), "resnet18", 32).head is None


def test_a_classifier_alone_is_told_where_to_go(tmp_path):
    path = write(tmp_path / "file", {"state_dict": layouts.linear("module.linear", 1000)})
    assert "a linear classifier alone; give it as squeeze.checkpoint.head" in refusal(path)


# Bad input.


def test_a_file_for_another_architecture_says_which(net, small, tiny, tmp_path):
    path = write(tmp_path / "large", layouts.moco_v2(*state_of(net)))
    for arch in ("resnet50", "resnet8x2", "resnet20"):
        assert "of resnet18; set squeeze.arch: resnet18" in refusal(path, arch)
    path = write(tmp_path / "small", layouts.moco_notebook(*state_of(small)))
    assert "set squeeze.arch: resnet18" in refusal(path, "resnet50")
    path = write(tmp_path / "tiny", layouts.flat(*state_of(tiny)))
    assert "set squeeze.arch: resnet8" in refusal(path)
    with torch.device("meta"):
        wide = torchvision.models.wide_resnet50_2().state_dict()
    path = write(tmp_path / "wide", layouts.other(wide))
    sentence = refusal(path, "resnet50w2")
    assert "weight 'conv1.weight' has shape [64, 3, 7, 7], not [128, 3, 7, 7]" in sentence
    assert "no ResNet here has these shapes" in sentence


def test_a_deeper_net_is_not_taken_for_the_shallower_one_that_it_contains(tiny, tmp_path):
    with torch.device("meta"):
        deep = {n: torchvision.models.get_model(f"resnet{n}").state_dict() for n in (34, 50, 101)}
    for depth, arch, said in (
        (34, "resnet18", "'layer1.2.conv1.weight' is one too many and 79 more do not fit"),
        (101, "resnet50", "'layer3.6.conv1.weight' is one too many"),
        (101, "resnet18", "these are the shapes of resnet101; set squeeze.arch: resnet101"),
        (50, "resnet101", "these are the shapes of resnet50"),
    ):
        assert said in refusal(write(tmp_path / "file", layouts.other(deep[depth])), arch)
    path = write(tmp_path / "file", create_model("resnet14", 0, 32).state_dict())
    assert "these are the shapes of resnet14; set squeeze.arch: resnet14" in refusal(
        path, "resnet8"
    )


def test_a_missing_weight_is_named_with_the_layout_found(net, tmp_path):
    backbone, head = state_of(net)
    for name in ("conv1.weight", "layer3.0.downsample.1.running_var", "bn1.bias"):
        kept = {k: v for k, v in backbone.items() if k != name}
        sentence = refusal(write(tmp_path / "file", layouts.barlow_twins(kept, head)))
        assert "found Barlow Twins, full, under 'model.backbone.'" in sentence
        assert f"the backbone weight 'backbone.{name}' is missing for resnet18" in sentence


def test_a_misshapen_weight_is_named(net, tmp_path):
    backbone, _ = state_of(net)
    for name, shape in (
        ("layer1.0.bn1.weight", (32,)),
        ("conv1.weight", (64, 3, 5, 5)),
        ("bn1.running_mean", (65,)),
        ("layer2.0.conv1.weight", ()),
    ):
        sentence = refusal(write(tmp_path / "file", {**backbone, name: filled(*shape)}))
        assert f"weight '{name}' has shape {list(shape)}, not" in sentence


def test_weights_that_are_not_finite_are_refused(net, tmp_path):
    backbone, _ = state_of(net)
    spoilt = {**backbone, "bn1.weight": torch.full((64,), torch.nan)}
    assert "'bn1.weight' has values that are not finite" in refusal(write(tmp_path / "f", spoilt))


class Code:
    """Creates a folder when it is unpickled by a reader that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


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


# Files of scdd.


def own(path: Path, model: Any, **more: Any) -> Path:
    names = ("arch", "image_size", "num_classes", "stem", "stem_spec")
    about = {name: getattr(model, name) for name in names}
    save_weights(path, model.state_dict(), {**about, **more})
    return path


def test_a_backbone_and_a_teacher_of_scdd_need_nothing_said(tmp_path):
    stem = SMALL.model_copy(update={"padding": 2})
    for arch, size, chosen in (
        ("resnet8", 16, None),
        ("resnet18", 32, None),
        ("resnet18", 32, stem),
    ):
        for classes in (0, 5):
            model = layouts.trained(create_model(arch, classes, size, chosen))
            path = own(tmp_path / "file.safetensors", model, objective="moco_v2", epoch=20)
            loaded = load_backbone(path, arch, size)
            assert (
                loaded.backbone.stem == model.stem and loaded.backbone.stem_spec == model.stem_spec
            )
            assert same(loaded, model) and loaded.backbone.num_classes == 0
            assert (loaded.objective, loaded.epoch) == ("moco_v2", 20)
            assert (loaded.head is None) == (classes == 0)


def test_a_net_of_scdd_keeps_its_stem_at_another_image_size(tmp_path):
    model = layouts.trained(create_model("resnet18", 0, 64))
    path = own(tmp_path / "file.safetensors", model)
    loaded = load_backbone(path, "resnet18", 128)
    assert loaded.backbone.stem == "conv 3x3 stride 1, no max-pool" and same(loaded, model)
    assert loaded.backbone.image_size == 128


def test_a_net_of_scdd_that_cannot_keep_its_geometry_is_refused(tmp_path):
    path = own(tmp_path / "vgg", create_model("vgg11", 0, 32))
    with pytest.raises(
        CheckpointError, match="geometry is 'pool 5 dropped', at 32 px, not 'stock'"
    ):
        load_backbone(path, "vgg11", 64)
    path = own(tmp_path / "resnet", create_model("resnet18", 0, 32))
    assert "leave the stem out" in refusal(path, stem=STOCK)
    assert "holds 'resnet18'; set squeeze.arch to that" in refusal(path, "resnet50")
    save_weights(tmp_path / "shard", {"images": torch.zeros(1)}, {"index": 3})
    assert "does not say which network it is for" in refusal(tmp_path / "shard")


# What a configuration asks for.


def squeezed(cfg: dict[str, Any], mean: Any = IMAGENET_MEAN, std: Any = IMAGENET_STD) -> Any:
    return squeezed_from(CheckpointConfig(**cfg), "resnet18", 32, mean, std)


def test_mean_and_std_have_to_be_set(net, tmp_path):
    path = str(write(tmp_path / "file", layouts.dino(*state_of(net))))
    assert same(squeezed({"path": path}), net)
    for mean, std in ((None, IMAGENET_STD), (IMAGENET_MEAN, None)):
        with pytest.raises(ConfigError, match=r"set dataset\.mean and dataset\.std to those"):
            squeezed({"path": path}, mean, std)


def test_a_known_checkpoint_brings_its_normalisation_and_architecture(tmp_path):
    with torch.device("meta"):
        state = torchvision.models.resnet50().state_dict()
    path = str(write(tmp_path / "file", layouts.swav(layouts.other(state), {})))
    cfg = CheckpointConfig(path=path, known="swav_800ep")

    def load(arch: str, mean: Any, std: Any) -> Any:
        return squeezed_from(cfg, arch, 32, mean, std)

    loaded = load("resnet50", IMAGENET_MEAN, SWAV_STD)
    assert (loaded.objective, loaded.epoch) == ("swav", 800)
    with pytest.raises(ConfigError, match=r"trained with mean: .* std: \[0.228, .* has .*0.229"):
        load("resnet50", IMAGENET_MEAN, IMAGENET_STD)
    with pytest.raises(ConfigError, match=r"\(mean: .*, std: \[0.228, .* for swav_800ep"):
        load("resnet50", None, None)
    with pytest.raises(ConfigError, match=r"is a resnet50, but .* resnet18; set squeeze.arch"):
        load("resnet18", IMAGENET_MEAN, SWAV_STD)


def test_a_teacher_of_scdd_brings_its_normalisation(tmp_path):
    model = create_model("resnet18", 5, 32)
    path = str(own(tmp_path / "file", model, mean=[0.5] * 3, std=[0.25] * 3))
    assert squeezed({"path": path}, (0.5,) * 3, (0.25,) * 3).head is not None
    with pytest.raises(ConfigError, match=r"trained with mean: \[0.5, 0.5, 0.5\]"):
        squeezed({"path": path})
