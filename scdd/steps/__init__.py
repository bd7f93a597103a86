"""The steps of a run: each reads files of earlier steps, calls a stage, writes its own files.

Long steps work in shards (a batch of images, a range of views, a student), each written whole, and
go on after a kill with the first shard that is missing.
"""

from scdd.steps.condense import run_condense
from scdd.steps.context import Arm, Context, check_later_steps, teacher_record
from scdd.steps.posttrain import run_posttrain, student_seed
from scdd.steps.probe import run_probe, run_probe_labellers
from scdd.steps.recover import run_recover
from scdd.steps.relabel import run_baseline, run_relabel
from scdd.steps.select import run_select
from scdd.steps.squeeze import (
    load_instead,
    run_squeeze,
    run_squeeze_labellers,
    run_squeeze_scorer,
)

__all__ = [
    "Arm",
    "Context",
    "check_later_steps",
    "load_instead",
    "run_baseline",
    "run_condense",
    "run_posttrain",
    "run_probe",
    "run_probe_labellers",
    "run_recover",
    "run_relabel",
    "run_select",
    "run_squeeze",
    "run_squeeze_labellers",
    "run_squeeze_scorer",
    "student_seed",
    "teacher_record",
]
