"""Configurations from YAML, presets and --set: what is taken, and what a mistake is told."""

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from scdd.config.load import (
    check,
    find_config,
    load_config,
    posttrain_config,
    preset_names,
    read_run_config,
    read_yaml,
)
from scdd.config.objectives import DinoConfig, MocoV2Config, SupervisedConfig, SwavConfig
from scdd.config.posttrain import PosttrainConfig
from scdd.config.run import RunConfig
from scdd.config.squeeze import SqueezeConfig
from scdd.config.views import ViewConfig
from scdd.errors import ConfigError


@pytest.fixture
def write(tmp_path: Path):
    """Return `write(text)`, which makes a YAML file and gives its path as text."""

    def write(text: str | bytes) -> str:
        path = tmp_path / "my.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


def refusal(*args: Any) -> str:
    """The one sentence that `load_config` refuses its arguments with."""
    with pytest.raises(ConfigError) as caught:
        load_config(*args)
    return str(caught.value)


def numeric_fields(model: BaseModel, prefix: str = "") -> dict[str, int | float]:
    """Every numeric setting of a configuration, by dotted key."""
    found: dict[str, int | float] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            found |= numeric_fields(value, f"{prefix}{name}.")
        elif isinstance(value, tuple):
            for number, item in enumerate(value):
                if isinstance(item, BaseModel):
                    found |= numeric_fields(item, f"{prefix}{name}.{number}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + name] = value
    return found


def at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config[int(name)] if isinstance(config, tuple) else getattr(config, name)
    return config


def test_nothing_at_all_is_the_preset_digits():
    assert find_config(None).name == "digits.yaml"
    assert load_config(None) == load_config("digits")


def test_a_file_is_read_and_what_it_leaves_out_has_its_default(write):
    config = load_config(write("seed: 3\nrecover: {iterations: 7, betas: [0.1, 0.2]}\n"))
    assert (
        config.seed == 3 and config.recover.iterations == 7 and config.recover.betas == (0.1, 0.2)
    )
    assert config.recover.lr == 0.1 and config.squeeze == RunConfig().squeeze


def test_a_preset_wins_over_a_file_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text("seed: 99")
    assert load_config("digits").seed != 99


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (
            "recover: {iteration: 5}",
            "my.yaml: recover: unknown key 'iteration', did you mean 'iterations'?; known: start, "
            "iterations, batch, ",
        ),
        (
            "recovr: {iterations: 5}",
            "my.yaml: unknown key 'recovr', did you mean 'recover'?; known: summary, method, ",
        ),
        (
            "squeeze: {objective: {queu: 5}}",
            "my.yaml: squeeze.objective: unknown key 'queu', did you mean 'queue'?; known: name, ",
        ),
        (
            "recover_real: {alpa: 5}",
            "my.yaml: recover_real: unknown key 'alpa', did you mean 'alpha'?; known: start, ",
        ),
        ("zzz: 1", "my.yaml: unknown key 'zzz'; known: summary, "),
        ("ipc: ten", "my.yaml: ipc: input should be a valid integer"),
        ("ipc: 0", "my.yaml: ipc: input should be greater than 0, found 0"),
        ("ipc: 1.5", "my.yaml: ipc: input should be a valid integer"),
        ("recover: {lr: [1]}", "my.yaml: recover.lr: input should be a valid number, found [1]"),
        ("recover: 5", "my.yaml: recover: wants a section of settings, found 5"),
        ("recover:", "my.yaml: recover: wants a section of settings, found None"),
        ("recover: {crop: zoom}", "my.yaml: recover.crop: input should be 'none', 'batch' or"),
        ("recover: {betas: [0.5, 2]}", "my.yaml: recover.betas.1: input should be less than or"),
        ("recover: {betas: [0.5]}", "my.yaml: recover.betas"),
        ("posttrain: {labels: []}", "my.yaml: posttrain.labels: list should have at least 1"),
        ("method: magic", "my.yaml: method: input should be 'scdd', found 'magic'"),
        ("1: 2", "my.yaml: 1: keys should be strings"),
        ("summary: 2024-01-01", "my.yaml: summary: input should be a valid string"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_is_allowed(text: str, start: str, write):
    assert refusal(write(text)).startswith(start)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("", "wants a mapping of sections, found an empty file"),
        ("# nothing but this\n", "wants a mapping of sections, found an empty file"),
        ("[1, 2]", "wants a mapping of sections, found list"),
        ("just words", "wants a mapping of sections, found str"),
        ("7", "wants a mapping of sections, found int"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_saying_what_it_is(text: str, end: str, write):
    path = write(text)
    assert refusal(path) == f"{path}: {end}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: 1\nrecover: {lr: 1\n", 3),
        ("seed: 1\nipc: 2\n\trecover: 3\n", 3),
        ("a: b: c", 1),
        ("recover:\n  lr: 1\n lr: 2\n", 3),
        ("seed: 1\n--- {}\n", 2),
        ("seed: 1\nx: !!python/object/apply:os.getcwd []\n", 2),
    ],
)
def test_broken_yaml_is_refused_with_the_line(text: str, line: int, write):
    path = write(text)
    assert refusal(path).startswith(f"{path}, line {line}: is not valid YAML: ")


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"seed: \x00 1", b"\x80"])
def test_bytes_that_are_no_text_are_refused(data: bytes, write):
    path = write(data)
    assert refusal(path).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["none.yaml", "a/b", "dir/none.yml"])
def test_a_path_without_a_file_is_refused(name: str):
    assert refusal(name) == f"{name}: no such configuration file"


def test_an_unknown_preset_is_refused_with_those_there_are():
    sentence = refusal("digit")
    assert sentence.startswith("unknown preset 'digit', did you mean 'digits'?; presets: ")
    assert all(name in sentence for name in preset_names())


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E-3", 1e-3), ("5e-04", 5e-4), ("1.0e-3", 1e-3), ("2", 2.0), (".5", 0.5)],
)
def test_exponents_are_numbers_although_yaml_takes_some_for_text(text: str, value: float, write):
    assert load_config(write(f"recover: {{lr: {text}}}")).recover.lr == value
    assert load_config(None, [f"recover.lr={text}"]).recover.lr == value
    assert load_config(None, [f"probe.l2=[{text}]"]).probe.l2 == (value,)


def test_set_changes_one_value_and_leaves_its_neighbours():
    base, changed = load_config(None), load_config(None, ["recover.iterations=3", "seed=8"])
    assert changed.recover.iterations == 3 and changed.seed == 8
    assert changed.recover.alpha == base.recover.alpha and changed.squeeze == base.squeeze


def test_the_last_of_several_settings_counts():
    assert load_config(None, ["seed=1", "seed=2"]).seed == 2


def test_set_opens_a_section_that_the_file_leaves_out(write):
    path = write("seed: 1")
    assert load_config(path).recover_real is None
    opened = load_config(path, ["recover_real.iterations=5"]).recover_real
    assert opened is not None and opened.iterations == 5
    assert load_config(path, ["squeeze.objective.queue=600"]).squeeze.objective.queue == 600
    real_start = load_config(path, ["recover_real={start: real, lr: 1e-2}"]).recover_real
    assert real_start is not None and real_start.lr == 0.01


def test_set_null_takes_an_optional_section_or_value_away():
    assert load_config(None).recover_real is not None
    assert load_config(None, ["recover_real=null"]).recover_real is None
    assert load_config(None, ["threads=3", "threads=null"]).threads is None
    assert refusal(None, ["recover.lr=null"]).startswith("--set recover.lr=null: recover.lr: ")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("recover", "--set recover: wants key=value, such as recover.iterations=500"),
        ("=3", "--set =3: wants key=value, such as recover.iterations=500"),
        ("recover.lr=[", "--set recover.lr=[: the value is not valid YAML"),
        ("summary.x=1", "--set summary.x=1: summary is a value, not a section"),
        ("recover.lr.x=1", "--set recover.lr.x=1: lr is a value, not a section"),
        ("recover.=1", "--set recover.=1: recover: unknown key ''; known: start, "),
        (".lr=1", "--set .lr=1: unknown key ''; known: summary, "),
        (
            "recover.rol=1",
            "--set recover.rol=1: recover: unknown key 'rol', did you mean 'roll'?; known: start, ",
        ),
        ("a.b.c=1", "--set a.b.c=1: unknown key 'a'; known: summary, "),
        ("seed=-1", "--set seed=-1: seed: input should be greater than or equal to 0, found -1"),
        ("probe.l2=1e-3", "--set probe.l2=1e-3: probe.l2: input should be a valid list"),
    ],
)
def test_a_wrong_override_is_quoted(override: str, sentence: str):
    assert refusal(None, [override]).startswith(sentence)


@pytest.mark.parametrize(
    ("overrides", "recipe"),
    [
        ((), "paper"),
        (("seed=3", "threads=2", "posttrain.seeds=5", "posttrain.labels=[soft]"), "paper"),
        (("dataset.name=image_folder", "dataset.root=/elsewhere"), "paper"),
        (("posttrain.batch=64",), "paper"),  # the published value
        (("posttrain.batch=32",), "custom"),
        (("recover_real={start: real}",), "custom"),
        (("dataset.image_size=64",), "custom"),
        (("posttrain.batch=32", "recipe=paper"), "custom"),
        (("recipe=best",), "paper"),  # its name is the file's to give
    ],
)
def test_a_published_recipe_that_is_changed_is_not_called_so_any_more(
    overrides: tuple[str, ...], recipe: str
):
    assert load_config("cifar100_ipc50", overrides).recipe == recipe


def test_a_value_may_hold_an_equals_sign():
    assert load_config(None, ["summary=a = b"]).summary == "a = b"


def test_overrides_that_need_each_other_may_come_in_any_order():
    pair = ["squeeze.batch=1024", "squeeze.objective.queue=4096"]
    for overrides in (pair, pair[::-1]):
        squeeze = load_config(None, overrides).squeeze
        assert (squeeze.batch, squeeze.objective.queue) == (1024, 4096)


@given(st.sampled_from(sorted(numeric_fields(load_config(None)))), st.data())
def test_any_numeric_override_survives_a_round_trip_through_yaml(tmp_path_factory, key, data):
    before = at(load_config(None), key)
    numbers = (
        st.integers(1, 2**40)
        if isinstance(before, int)
        else st.floats(1e-12, 1e12, allow_subnormal=False) | st.floats(1e-6, 1)
    )
    value = data.draw(numbers)
    try:
        changed = load_config(None, [f"{key}={value}"])
    except ConfigError as error:
        between_keys = (
            "squeeze: objective.queue is ",
            "squeeze: objective.key_splits is ",
            "squeeze.views: moco_v2 wants 2 of an image",
        )
        starts = (f"{key}: input should be ", *between_keys)
        allowed = tuple(f"--set {key}={value}: {start}" for start in starts)
        assert str(error).startswith(allowed)
        return
    assert at(changed, key) == value
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    path.write_text(yaml.safe_dump(changed.model_dump(mode="json"), sort_keys=False))
    path.with_name("environment.json").write_text("{}")
    assert load_config(str(path)) == changed == read_run_config(path.parent)
    others = numeric_fields(load_config(None)) | {key: value}
    assert numeric_fields(changed) == others


@pytest.mark.parametrize("value", ["-1", ".nan", "-.inf", "nonsense", "[1]", "{a: 1}"])
def test_no_number_takes_nonsense(value: str):
    for key in numeric_fields(load_config(None)):
        sentence = refusal(None, [f"{key}={value}"])
        assert sentence.startswith(f"--set {key}={value}: {key}: input should")


@pytest.mark.parametrize("value", [".inf", "true"])
def test_no_number_takes_infinity_or_a_truth_value(value: str):
    for key in numeric_fields(load_config(None)):
        assert refusal(None, [f"{key}={value}"]).startswith(f"--set {key}={value}: {key}: ")


@pytest.mark.parametrize("value", ["[1.0, 0.3]", "[-1, 1]", "[0, 0]"])
def test_a_range_is_positive_and_in_order(value: str):
    sections = ("squeeze.views.0", "probe", "recover", "relabel")
    for key in [f"{section}.crop_scale" for section in sections] + ["squeeze.views.0.blur_sigma"]:
        assert refusal(None, [f"{key}={value}"]).startswith(f"--set {key}={value}: {key}: ")


def test_a_crop_is_no_larger_than_the_image():
    for section in ("squeeze.views.0", "probe", "recover", "relabel"):
        refusal(None, [f"{section}.crop_scale=[0.5, 1.5]"])


def test_a_cosine_may_be_stretched_but_not_shrunk():
    assert load_config(None, ["posttrain.stretch=1"]).posttrain.stretch == 1
    refusal(None, ["posttrain.stretch=0.5"])


def test_a_key_that_stands_twice_in_a_file_is_refused(write):
    assert "lr" in refusal(write("recover:\n  lr: 1\n  alpha: 2\n  lr: 3\n"))


def models(model: type[BaseModel]) -> set[type[BaseModel]]:
    """A model and all models in its fields, however deep in unions and lists."""
    found = {model}
    parts: list[Any] = [field.annotation for field in model.model_fields.values()]
    while parts:
        part = parts.pop()
        if isinstance(part, type) and issubclass(part, BaseModel):
            found |= models(part)
        parts += get_args(part)
    return found


NEEDED = {"path": "file", "kernel": 3, "stride": 1, "padding": 1, "max_pool": False}
"""A value of each key that has no default."""


@pytest.mark.parametrize("model", sorted(models(RunConfig), key=str))
def test_every_section_is_frozen_and_knows_no_other_keys(model: type[BaseModel]):
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    needed = {name: NEEDED[name] for name in required}
    section = model.model_validate(needed)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(section, next(iter(model.model_fields)), 1)
    with pytest.raises(ValidationError, match="extra"):
        model.model_validate({**needed, "no_such_key": 1})


def test_all_sections_are_found():
    found = models(RunConfig)
    assert {MocoV2Config, DinoConfig, SupervisedConfig, ViewConfig, SqueezeConfig} <= found
    assert len(found) >= 15


# Views and objectives


def test_set_reaches_into_a_list():
    base = load_config(None)
    changed = load_config(None, ["squeeze.views.0.blur=0.5", "squeeze.views.0.crop_scale.0=0.3"])
    assert changed.squeeze.views[0].blur == 0.5 and changed.squeeze.views[0].count == 2
    assert changed.squeeze.views[0].crop_scale == (0.3, base.squeeze.views[0].crop_scale[1])
    assert changed.squeeze.views[0].flip == base.squeeze.views[0].flip
    whole = load_config(None, ["squeeze.views=[{count: 1, blur: 1}, {solarise: 0.2}]"])
    assert [(v.count, v.blur, v.solarise) for v in whole.squeeze.views] == [(1, 1, 0), (1, 0, 0.2)]
    entry = load_config(None, ["squeeze.views.0={count: 2}"]).squeeze.views
    assert entry == (ViewConfig(count=2),)


@pytest.mark.parametrize("place", ["1", "x", "-1", "01", "1.5", "\u00b2", ""])
def test_a_place_that_a_list_does_not_have_is_refused(place: str):
    for key in (f"squeeze.views.{place}", f"squeeze.views.{place}.blur"):
        name = place.split(".")[0]
        assert refusal(None, [f"{key}=0.5"]) == (
            f"--set {key}=0.5: '{name}' is no entry of a list of 1; entries count from 0"
        )


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
            "squeeze.views: moco_v2 wants 2 of an image, but views make 3; change their count",
        ),
        (
            "views: [{}]",
            "squeeze.views: moco_v2 wants 2 of an image, but views make 1; change their count",
        ),
        (
            "{objective: {name: swav}, views: [{}]}",
            "squeeze.views: swav wants at least 2 of an image, but views make 1; change their "
            "count",
        ),
        (
            "objective: {name: supervised}",
            "squeeze.views: supervised wants 1 of an image, but views make 2; change their count",
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


def test_a_folder_without_a_configuration_is_no_run(tmp_path: Path):
    assert read_run_config(tmp_path) is None
    (tmp_path / "config.yaml").write_text("ipcs: 3")
    assert read_run_config(tmp_path) is None, "somebody's configuration is not yet a run"
    (tmp_path / "environment.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"config\.yaml: unknown key 'ipcs', did you mean 'ipc'"):
        read_run_config(tmp_path)


def test_training_settings_for_a_file_are_those_of_its_run_with_changes():
    base = PosttrainConfig(lr=0.5, epochs=9)
    changed = posttrain_config(base, ["epochs=4", "labels=[hard]"])
    assert (changed.lr, changed.epochs, changed.labels) == (0.5, 4, ("hard",))
    assert posttrain_config(None, []) == PosttrainConfig()
    with pytest.raises(ConfigError, match="--set epoch=4: posttrain: unknown key 'epoch', did you"):
        posttrain_config(base, ["epoch=4"])


def test_validation_alone_names_its_place():
    with pytest.raises(ConfigError, match=r"^here: unknown key 'x'"):
        check({"x": 1}, "here")
    assert check({}, "here") == RunConfig()


def test_reading_yaml_alone_checks_no_keys(write):
    assert read_yaml(Path(write("x: {y: .inf}"))) == {"x": {"y": math.inf}}
