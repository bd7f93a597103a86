"""Which networks may be teachers of recovery and label, as far as a configuration tells."""

import json
from typing import Any

import pytest

from scdd.config.load import load_config
from tests.config.conftest import refusal

SECTIONS: list[dict[str, Any]] = [
    {"arch": "resnet8", "views": [{"count": 1}], "objective": {"name": "supervised"}},
    {"arch": "resnet14"},
]
LABELLERS = f"squeeze_labellers={json.dumps(SECTIONS)}"


def test_by_default_the_probed_backbone_is_the_only_one():
    cfg = load_config(None, [LABELLERS])
    for step in ("recover", "recover_real", "relabel", "relabel_real", "baseline"):
        assert list(cfg.teachers_of(step)) == ["squeeze"]


@pytest.mark.parametrize(
    ("teachers", "archs"),
    [("labellers", ["resnet8", "resnet14"]), ("all", ["resnet8x2", "resnet8", "resnet14"])],
)
@pytest.mark.parametrize("step", ["recover", "recover_real", "relabel"])
def test_the_backbone_comes_first_and_labellers_in_the_order_of_their_list(
    step: str, teachers: str, archs: list[str]
):
    cfg = load_config(None, [LABELLERS, f"{step}.teachers={teachers}"])
    assert [network.arch for network in cfg.teachers_of(step).values()] == archs


@pytest.mark.parametrize("step", ["recover", "recover_real", "relabel"])
def test_labellers_that_are_not_listed_cannot_be_teachers(step: str):
    for teachers in ("labellers", "all"):
        override = f"{step}.teachers={teachers}"
        assert refusal(None, [override]) == (
            f"--set {override}: {step}.teachers is {teachers}, but squeeze_labellers lists no "
            "network; list some there, or choose teacher"
        )


def test_teachers_that_know_other_pixel_statistics_cannot_take_turns(write):
    def written(teachers: str, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
        sections = {
            "dataset": {"name": "image_folder", "root": "a", "image_size": 16, **ours},
            "squeeze_dataset": {"name": "image_folder", "root": "b", "image_size": 16, **theirs},
            "squeeze_labellers": SECTIONS,
            "recover": {"teachers": teachers},
        }
        return write(json.dumps(sections))

    known: dict[str, Any] = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    other = known | {"std": [0.2, 0.2, 0.3]}
    for ours, theirs in (({}, {}), (known, {}), ({}, known), (known, other)):
        assert refusal(written("all", ours, theirs)) == (
            "my.yaml: recover.teachers is all, but the backbone knows the pixel statistics of "
            "squeeze_dataset and the labellers those of dataset; give both the same mean and std, "
            "or choose teacher or labellers"
        )
    load_config(written("all", known, known))
    load_config(written("labellers", {}, {}))


def test_a_labeller_without_classifier_is_not_given_one(write):
    given = {"squeeze": SECTIONS[0], "probe": {"solver": "given"}}
    load_config(write(json.dumps(given)))
    assert refusal(write(json.dumps(given | {"squeeze_labellers": SECTIONS}))) == (
        "my.yaml: probe.solver is given, but squeeze_labellers.1.objective is moco_v2, which "
        "trains no classifier; choose lbfgs or sgd"
    )


def test_every_arm_is_labelled_by_the_same_networks():
    cfg = load_config(None, [LABELLERS, "relabel.teachers=labellers"])
    names = ["squeeze_labellers.0", "squeeze_labellers.1"]
    for step in ("relabel", "relabel_real", "baseline"):
        assert list(cfg.teachers_of(step)) == names
    assert list(cfg.teachers_of("recover")) == ["squeeze"]


def test_a_labeller_labels_after_an_epoch_that_is_kept():
    sections = json.dumps([SECTIONS[0] | {"keep_epochs": [3, 9]}, SECTIONS[1]])
    networks = [f"squeeze_labellers={sections}", "relabel.teachers=all"]
    load_config(None, [*networks, "relabel.epochs={resnet8: 9}"])
    assert refusal(None, [*networks, "relabel.epochs={resnet8: 4}"]).endswith(
        "relabel.epochs: epoch 4 of resnet8 is not kept; add it to keep_epochs of its section in "
        "squeeze_labellers"
    )
    # The backbone is no labeller, though it labels here.
    assert refusal(None, [*networks, "relabel.epochs={resnet8x2: 9}"]).endswith(
        "relabel.epochs: no labeller is a resnet8x2; labellers: resnet8, resnet14"
    )
    assert refusal(None, [networks[0], "relabel.epochs={resnet8: 9}"]).endswith(
        "relabel.epochs: no labeller is a resnet8; labellers: none, as relabel.teachers is teacher"
    )


def test_only_the_probed_teacher_can_lie_beside_a_file():
    load_config(None, ["relabel.codec=teacher"])
    for teachers in ("labellers", "all"):
        overrides = [LABELLERS, "relabel.codec=teacher", f"relabel.teachers={teachers}"]
        assert refusal(None, overrides).endswith(
            "relabel.codec is teacher, for which the weights of the probed teacher lie beside the "
            f"file, but relabel.teachers is {teachers}; choose teacher, or another codec"
        )
