"""The floor under a teacher's accuracy: where it comes from, and what is said below it."""

import pytest

from scdd.config.probe import ProbeConfig
from scdd.errors import RunError
from scdd.preflight import accuracy_floor, check_teacher


@pytest.mark.parametrize(
    ("classes", "floor"), [(1000, 0.2), (200, 1.0), (10, 20.0), (4, 50.0), (3, 200 / 3), (2, 75.0)]
)
def test_without_a_figure_the_floor_is_twice_guessing_but_can_be_passed_with_few_classes(
    classes: int, floor: float
):
    assert accuracy_floor(ProbeConfig(), classes).top1 == pytest.approx(floor)


def test_a_single_class_is_always_guessed_right():
    check_teacher(100.0, 5, accuracy_floor(ProbeConfig(), 1))


@pytest.mark.parametrize(
    ("published", "floor"), [(71.1, 61.1), (30.0, 20.0), (25.0, 20.0), (5.0, 20.0)]
)
def test_a_published_accuracy_raises_the_floor_to_ten_points_below_it(
    published: float, floor: float
):
    assert accuracy_floor(ProbeConfig(), 10, published).top1 == pytest.approx(floor)


@pytest.mark.parametrize("floor", [0.0, 12.5, 90.0])
def test_a_floor_that_is_set_stands_above_all_else(floor: float):
    found = accuracy_floor(ProbeConfig(floor=floor), 10, 71.1)
    assert found == (floor, "probe.floor")


def test_at_the_floor_the_run_goes_on_and_below_it_stops():
    floor = accuracy_floor(ProbeConfig(), 10)
    check_teacher(20.0, 500, floor)
    with pytest.raises(RunError):
        check_teacher(19.9, 500, floor)


@pytest.mark.parametrize(
    ("cfg", "classes", "published", "said"),
    [
        (ProbeConfig(), 10, None, "less than 20.0 % (twice guessing among 10 classes)"),
        (
            ProbeConfig(),
            2,
            None,
            "less than 75.0 % (halfway from guessing among 2 classes to 100 %)",
        ),
        (
            ProbeConfig(),
            1000,
            71.1,
            "less than 61.1 % (10 points below the 71.1 % published for this checkpoint)",
        ),
        (ProbeConfig(floor=30), 10, 71.1, "less than 30.0 % (probe.floor)"),
    ],
)
def test_the_sentence_says_what_was_found_what_causes_it_and_what_to_do(
    cfg: ProbeConfig, classes: int, published: float | None, said: str
):
    with pytest.raises(RunError) as caught:
        check_teacher(8.25, 500, accuracy_floor(cfg, classes, published))
    sentence = str(caught.value)
    assert sentence.startswith("probe: the teacher classifies 8.2 % of the 500 validation images")
    for words in (
        said,
        "classes in another order in val/ than in train/",
        "a loaded checkpoint with another stem or other pixel statistics",
        "too short a squeeze",
        "--redo squeeze",
        "--set probe.floor=0 --redo probe",
    ):
        assert words in sentence


def test_a_labeller_is_named_with_the_step_that_makes_it_anew():
    with pytest.raises(RunError) as caught:
        check_teacher(8.25, 500, accuracy_floor(ProbeConfig(), 10), "resnet14")
    sentence = str(caught.value)
    assert sentence.startswith("probe_labellers: the labeller resnet14 classifies 8.2 % of the 500")
    assert "--redo squeeze_labellers, or" in sentence
