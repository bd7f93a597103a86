"""The section squeeze: an objective by its name, and views that suit it."""

import pytest

from scdd.config.load import load_config
from scdd.config.objectives import DinoConfig, MocoV2Config, SwavConfig
from tests.config.conftest import refusal


def test_an_objective_is_chosen_by_its_name_and_starts_from_its_own_defaults(write):
    for config in (
        load_config(None, ["squeeze.objective={name: swav}"]),
        load_config(write("squeeze: {objective: {name: swav}}")),
    ):
        assert config.squeeze.objective == SwavConfig()
    several = ["squeeze.objective={name: dino}", "squeeze.objective.dim=512"]
    assert load_config(None, several).squeeze.objective == DinoConfig(dim=512)
    unnamed = load_config(write("squeeze: {objective: {dim: 64}}")).squeeze.objective
    assert unnamed == MocoV2Config(dim=64)


OBJECTIVES = "moco_v2, moco_v3, swav, dino, barlow_twins, supervised"


@pytest.mark.parametrize(
    ("squeeze", "sentence"),
    [
        # Keys of the section that the name chooses, without pydantic's tag.
        (
            "objective: {queue: x}",
            "squeeze.objective.queue: input should be a valid integer, unable to parse string as "
            "an integer, found 'x'",
        ),
        (
            "objective: {name: swav, queue: -1}",
            "squeeze.objective.queue: input should be greater than or equal to 0, found -1",
        ),
        (
            "objective: {name: swav, queu: 1}",
            "squeeze.objective: unknown key 'queu', did you mean 'queue'?; known: name, dim, "
            "hidden, prototypes, temperature, epsilon, sinkhorn_iterations, queue, "
            "queue_from_epoch, freeze_epochs",
        ),
        (
            "objective: {name: swa}",
            f"squeeze.objective: unknown name 'swa', did you mean 'swav'?; known: {OBJECTIVES}",
        ),
        ("objective: {name: 5}", f"squeeze.objective: unknown name '5'; known: {OBJECTIVES}"),
        (
            "objective: swav",
            "squeeze.objective: wants a name, such as {name: moco_v2}, found 'swav'",
        ),
        (
            "objective: {name: null}",
            "squeeze.objective: wants a name, such as {name: moco_v2}, found {'name': None}",
        ),
        (
            "views: [{count: 2, blr: 0.5}]",
            "squeeze.views.0: unknown key 'blr', did you mean 'blur'?; known: count, size, "
            "crop_scale, flip, jitter, brightness, contrast, saturation, hue, grey, blur, "
            "blur_sigma, solarise",
        ),
        (
            "views: [{count: 2, blur: 2}]",
            "squeeze.views.0.blur: input should be less than or equal to 1, found 2",
        ),
        ("views: [3]", "squeeze.views.0: wants a section of settings, found 3"),
        ("views: {count: 2}", "squeeze.views: input should be a valid list, found {'count': 2}"),
        (
            "views: []",
            "squeeze.views: list should have at least 1 item after validation, not 0, found []",
        ),
        # What the views of an objective must be.
        (
            "views: [{count: 1}, {count: 2}]",
            "squeeze.views: moco_v2 wants 2 of an image, but views make 3; change their count, "
            "as in views: [{count: 2}]",
        ),
        (
            "views: [{}]",
            "squeeze.views: moco_v2 wants 2 of an image, but views make 1; change their count, "
            "as in views: [{count: 2}]",
        ),
        (
            "{objective: {name: swav}, views: [{}]}",
            "squeeze.views: swav wants at least 2 of an image, but views make 1; change their "
            "count, as in views: [{count: 2}]",
        ),
        (
            "objective: {name: supervised}",
            "squeeze.views: supervised wants 1 of an image, but views make 2; change their count, "
            "as in views: [{count: 1}]",
        ),
        (
            "{objective: {name: dino}, views: [{size: 16}, {count: 6, size: 8}]}",
            "squeeze.views: the first two are the global ones and need the same size",
        ),
        (
            "{objective: {name: dino}, views: [{size: 16}, {size: 8}]}",
            "squeeze.views: the first two are the global ones and need the same size",
        ),
        # Numbers that need each other.
        (
            "{batch: 64, objective: {queue: 127}}",
            "squeeze: objective.queue is 127, but a step makes 128 keys; choose a queue of at "
            "least 128, or a smaller batch",
        ),
        (
            "{batch: 8, objective: {queue: 64, key_splits: 5}}",
            "squeeze: objective.key_splits is 5, which leaves less than two of 8 images to each; "
            "lower it or raise the batch",
        ),
        (
            "{epochs: 5, objective: {name: swav, queue: 512}}",
            "squeeze: objective.queue_from_epoch is 15, but there are only 5 epochs, so the queue "
            "would never be used; lower it",
        ),
        (
            "{epochs: 10, keep_epochs: [3, 11]}",
            "squeeze: keep_epochs names epoch 11, but there are 10",
        ),
    ],
)
def test_a_squeeze_that_cannot_be_is_told_which_key_and_why(squeeze: str, sentence: str, write):
    section = squeeze if squeeze.startswith("{") else f"{{{squeeze}}}"
    assert refusal(write(f"squeeze: {section}")) == f"my.yaml: {sentence}"


def test_what_an_objective_wants_of_its_views_can_be_given():
    pair = "squeeze.views=[{count: 2}, {count: 6, size: 8}]"
    for name in ("swav", "dino"):
        sizes = load_config(None, [f"squeeze.objective={{name: {name}}}", pair]).squeeze.view_sizes
        assert sizes == (None, None, 8, 8, 8, 8, 8, 8)
    one = ["squeeze.objective={name: supervised}", "squeeze.views.0.count=1"]
    assert load_config(None, one).squeeze.view_sizes == (None,)
    odd = ["squeeze.views=[{size: 12}, {size: 12, blur: 1}]"]
    assert load_config(None, odd).squeeze.view_sizes == (12, 12)
    kept = load_config(None, ["squeeze.epochs=10", "squeeze.keep_epochs=[3, 10]"]).squeeze
    assert kept.keep_epochs == (3, 10)


def test_a_view_is_no_larger_than_the_image(write):
    sentence = (
        "squeeze.views: a view of 17 px cannot be cut from images of 16 px; lower its size or "
        "raise dataset.image_size"
    )
    assert (
        refusal(None, ["squeeze.views.0.size=17"]) == f"--set squeeze.views.0.size=17: {sentence}"
    )
    text = "dataset: {image_size: 16}\nsqueeze: {views: [{count: 2, size: 17}]}"
    assert refusal(write(text)) == f"my.yaml: {sentence}"
    larger = ["squeeze.views.0.size=17", "dataset.image_size=17"]
    for overrides in (larger, larger[::-1]):
        assert load_config(None, overrides).squeeze.view_sizes == (17, 17)
    refusal(None, ["squeeze.views.0.size=7"])


def test_a_section_in_a_list_is_located_as_one_elsewhere():
    assert refusal(
        None, ["squeeze_labellers=[{}, {arch: resnet8, objective: {queu: 5}}]"]
    ).startswith(
        "--set squeeze_labellers=[{}, {arch: resnet8, objective: {queu: 5}}]: "
        "squeeze_labellers.1.objective: unknown key 'queu', did you mean 'queue'?; known: name, "
    )
