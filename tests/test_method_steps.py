"""The lists of steps: what each reads is made before, and what a configuration leaves out goes."""

from scdd.config.load import load_config
from scdd.config.run import RunConfig
from scdd.method_steps import SCDD, steps_of
from tests import tiny_run


def test_every_step_reads_steps_before_it_and_sections_that_exist():
    assert [step.name for step in SCDD if not step.name.endswith("_labellers")] == list(
        tiny_run.STEPS
    )
    before: set[str] = set()
    for step in SCDD:
        assert set(step.inputs) <= before
        assert set(step.sections) <= RunConfig.model_fields.keys()
        before.add(step.name)


def test_without_a_real_start_its_two_steps_and_what_reads_them_go():
    cfg = load_config("digits", ["recover_real=null"])
    steps = {step.name: step for step in steps_of(cfg)}
    assert list(steps) == [name for name in tiny_run.STEPS if not name.endswith("_real")]
    assert steps["posttrain"].inputs == ("relabel", "baseline")
