"""`--set`: what it changes, down to a place in a list, and how a wrong one is quoted."""

import pytest

from scdd.config.load import load_config
from scdd.config.views import ViewConfig
from tests.config.conftest import refusal


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


def test_the_override_is_named_after_which_the_same_was_wrong():
    raw, still = "condense_pairs.parameterisation=raw", "condense_pairs.rotations=false"
    said = refusal("digits_boost", [raw, still])
    assert said.startswith(f"--set {still}: condense_pairs: approximation is true, but rotations")
    assert refusal("digits_boost", [raw]).startswith(f"--set {raw}: ")
    assert refusal("digits_boost", ["seed=1", "seed=x", "threads=1"]).startswith("--set seed=x: ")


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


@pytest.mark.parametrize(("written", "meant"), [("on", "on"), ("off", "off"), ("'on'", "on")])
def test_a_bare_on_is_what_was_written_and_no_truth_value(written: str, meant: str):
    cfg = load_config("digits", [f"recover.compile={written}", f"posttrain.capture={written}"])
    assert (cfg.recover.compile, cfg.posttrain.capture) == (meant, meant)
