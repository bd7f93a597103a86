"""Which sections a method has, and what `--set method=` changes beside the method."""

import pytest

from scdd.config.load import load_config
from scdd.config.methods import OWN_SECTIONS
from tests.config.conftest import refusal

CORESETS = ("random", "herding", "forgetting", "k_center")


@pytest.mark.parametrize("method", CORESETS)
def test_another_method_leaves_out_what_it_has_no_use_for_and_says_so(
    method: str, capsys: pytest.CaptureFixture[str]
):
    base, cfg = load_config("digits"), load_config("digits", [f"method={method}"])
    assert capsys.readouterr().out == f"method {method}: recover and recover_real left out\n"
    assert cfg.recover is None and cfg.recover_real is None and cfg.recoveries == {}
    assert cfg.select is not None and cfg.select.balanced
    assert (cfg.squeeze, cfg.relabel, cfg.posttrain) == (base.squeeze, base.relabel, base.posttrain)
    assert cfg.recipe == "custom"
    assert not {"recover", "recover_real"} & cfg.model_dump().keys()


def test_sre2l_squeezes_with_labels_for_as_long_and_keeps_the_classifier(
    capsys: pytest.CaptureFixture[str],
):
    base, cfg = load_config("digits"), load_config("digits", ["method=sre2l"])
    assert capsys.readouterr().out == (
        "method sre2l: squeeze.objective is supervised, on one view, for as many epochs, "
        "probe.solver is given\n"
    )
    assert cfg.squeeze.objective.name == "supervised" and cfg.probe.solver == "given"
    (view,) = cfg.squeeze.views
    assert view == base.squeeze.views[0].model_copy(update={"count": 1})
    same = {"objective", "views"}
    assert cfg.squeeze.model_dump(exclude=same) == base.squeeze.model_dump(exclude=same)
    assert (cfg.recover, cfg.recover_real) == (base.recover, base.recover_real)


def test_a_bridge_has_the_images_of_one_family_and_the_targets_of_the_other(
    capsys: pytest.CaptureFixture[str],
):
    base, pairs = load_config("digits"), load_config("digits", ["method=scdd_pairs"])
    assert (pairs.squeeze, pairs.probe, pairs.recover) == (base.squeeze, base.probe, base.recover)
    assert pairs.represent is not None and pairs.pretrain is not None and pairs.ipc == base.ipc
    assert pairs.images_from == "recover" and pairs.pairs_from == "represent"
    boost = load_config("digits_boost")
    labels = load_config("digits_boost", ["method=boost_labels"])
    assert labels.condense_pairs == boost.condense_pairs and labels.pretrain is None
    assert labels.images_from == "decode" and labels.pairs_from == "condense_pairs"
    assert labels.posttrain.labels == ("soft",)
    raw = load_config("digits_krr_st", ["method=krr_st_labels"])
    assert raw.condense_pairs is not None and raw.condense_pairs.parameterisation == "raw"
    assert capsys.readouterr().out.splitlines() == [
        "method scdd_pairs: recover_real and relabel and posttrain left out",
        "method boost_labels: pretrain left out",
        "method krr_st_labels: pretrain left out",
    ]


def test_images_of_no_class_forget_what_asks_for_classes(write, capsys: pytest.CaptureFixture[str]):
    path = write("posttrain: {labels: [soft, hard], hard_weight: 0.1}")
    cfg = load_config(path, ["method=boost_labels"])
    assert cfg.posttrain.labels == ("soft",) and cfg.posttrain.hard_weight == 0
    assert capsys.readouterr().out == (
        "method boost_labels: posttrain.labels is [soft], posttrain.hard_weight is 0\n"
    )


def test_what_is_set_beside_the_method_counts_for_it(capsys: pytest.CaptureFixture[str]):
    changes = ["squeeze.objective.label_smoothing=0.1", "method=sre2l", "squeeze.epochs=7"]
    cfg = load_config("digits", changes)
    assert cfg.squeeze.objective.label_smoothing == 0.1 and cfg.squeeze.epochs == 7
    random = load_config("digits", ["select.balanced=false", "method=random"])
    assert random.select is not None and random.select.balanced is False
    assert capsys.readouterr().out.count("\n") == 2


def test_a_file_may_name_its_method_and_be_changed_back(write, capsys):
    path = write("method: herding\nselect: {balanced: false}")
    assert load_config(path).select.balanced is False and capsys.readouterr().out == ""
    back = load_config(path, ["method=scdd", "recover.lr=0.5"])
    assert back.select is None and back.recover is not None and back.recover.lr == 0.5
    assert load_config(path, ["method=herding"]).method == "herding"
    assert capsys.readouterr().out == "method scdd: select left out\n"


def test_the_configuration_that_a_run_keeps_is_read_as_it_was(write):
    import yaml

    for method in OWN_SECTIONS:
        cfg = load_config("digits", [f"method={method}"])
        kept = write(yaml.safe_dump(cfg.model_dump(mode="json")))
        assert load_config(kept) == cfg


def test_forgetting_is_counted_by_squeeze_or_by_a_training_like_it():
    own = load_config("digits", ["method=forgetting"]).scorer
    assert own is not None and own.objective.name == "supervised" and own.epochs == 30
    labelled = ["squeeze.objective={name: supervised}", "squeeze.views=[{}]"]
    assert load_config("digits", ["method=forgetting", *labelled]).scorer is None
    elsewhere = "squeeze_dataset={name: digits, image_size: 16, train_per_class: 20}"
    assert load_config("digits", ["method=forgetting", *labelled, elsewhere]).scorer is not None
    given = "squeeze_scorer={epochs: 3, objective: {name: supervised}, views: [{}]}"
    scorer = load_config("digits", ["method=forgetting", *labelled, given]).scorer
    assert scorer is not None and scorer.epochs == 3
    assert load_config("digits", ["method=herding"]).scorer is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "{method: herding, recover: {}}",
            "my.yaml: recover: method herding has no use for this section; take it out, or choose "
            "another method",
        ),
        ("select: {}", "my.yaml: select: method scdd has no use for this section; take it out, "),
        ("method: [herding]", "my.yaml: method: input should be 'scdd'"),
        ("{method: herding, select:}", "my.yaml: select: wants a section of settings, found None"),
        ("{method: random, select: {balance: no}}", "my.yaml: select: unknown key 'balance'"),
        (
            "method: sre2l",
            "my.yaml: method is sre2l, whose squeeze learns from labels, but squeeze.objective is "
            "moco_v2; set squeeze.objective={name: supervised}, or choose method scdd",
        ),
        (
            "{method: sre2l, squeeze: {objective: {name: supervised}, views: [{}]}}",
            "my.yaml: method is sre2l, whose teacher keeps the classifier of squeeze, but "
            "probe.solver is lbfgs; set it to given",
        ),
        (
            "{method: boost_labels, posttrain: {labels: [hard]}}",
            "my.yaml: method is boost_labels, whose images have no class, but posttrain.labels "
            "asks for hard labels; set it to [soft]",
        ),
        (
            "{method: krr_st_labels, condense_pairs: {parameterisation: bases}}",
            "my.yaml: method is krr_st_labels, which learns pixels as they are, but "
            "condense_pairs.parameterisation is bases; choose method boost_labels",
        ),
        (
            "{method: scdd_pairs, recover_real: {}}",
            "my.yaml: recover_real: method scdd_pairs has no use for this section",
        ),
        (
            "{method: forgetting, squeeze: {checkpoint: {path: x.pth}}}",
            "my.yaml: method is forgetting, which counts what a training forgets, but squeeze "
            "takes the weights of a checkpoint; describe that training in squeeze_scorer",
        ),
        (
            "{method: forgetting, squeeze_scorer: {epochs: 3}}",
            "my.yaml: squeeze_scorer: is the training with labels that counts what is forgotten; "
            "set its objective to {name: supervised}",
        ),
    ],
)
def test_a_section_that_does_not_go_with_the_method_is_refused(text: str, sentence: str, write):
    assert refusal(write(text)).startswith(sentence)


def test_an_unknown_method_is_named_with_the_one_that_was_meant(write):
    said = refusal(write("method: herdin"))
    assert said.startswith("my.yaml: method: input should be 'scdd', 'sre2l', 'random', 'herding'")
    assert said.endswith(", found 'herdin', did you mean 'herding'?")


def test_the_last_of_several_methods_counts(capsys: pytest.CaptureFixture[str]):
    base, cfg = load_config("digits"), load_config("digits", ["method=herding", "method=scdd"])
    assert cfg == base and capsys.readouterr().out == ""


def test_a_section_of_another_method_set_by_hand_is_refused():
    said = refusal("digits", ["method=herding", "recover.lr=1"])
    assert said.startswith("--set recover.lr=1: recover: method herding has no use for this")
