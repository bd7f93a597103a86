"""Configuration files that are refused: wrong keys and values, broken YAML, no file at all."""

import pytest

from scdd.config.load import preset_names
from tests.config.conftest import refusal


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (
            "recover: {iteration: 5}",
            "my.yaml: recover: unknown key 'iteration', did you mean 'iterations'?; known: start, "
            "candidates, candidate_crops, iterations, ",
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
        ("recover: {betas: [0.5, 2]}", "my.yaml: recover.betas.1: input should be less than 1"),
        (
            "recover: {compile: 1}",
            "my.yaml: recover.compile: input should be 'auto', 'on' or 'off'",
        ),
        ("recover: {betas: [0.5]}", "my.yaml: recover.betas"),
        ("posttrain: {labels: []}", "my.yaml: posttrain.labels: list should have at least 1"),
        ("method: magic", "my.yaml: method: input should be 'scdd', 'sre2l', 'random',"),
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


def test_a_key_that_stands_twice_in_a_file_is_refused(write):
    assert "lr" in refusal(write("recover:\n  lr: 1\n  alpha: 2\n  lr: 3\n"))
