"""Linear classifiers: in the file, in a second one, and what is never taken for one."""

import torch

from scdd.foreign import load_backbone
from tests.foreign import layouts
from tests.foreign.conftest import refusal, state_of
from tests.foreign.layouts import filled, under, write


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
