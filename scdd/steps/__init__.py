"""The steps of a run: each reads files of earlier steps, calls a stage, writes its own files.

Long steps work in shards (a batch of images, a range of views, a student), each written whole, and
go on after a kill with the first shard that is missing.
"""

from scdd.steps.condense import run_condense
from scdd.steps.context import Arm, Context, check_later_steps, teacher_record
from scdd.steps.decode import run_decode
from scdd.steps.pair_sizes import PairPlan, plan_pairs
from scdd.steps.pairs import run_baseline_pairs, run_condense_pairs
from scdd.steps.posttrain import run_posttrain, student_seed
from scdd.steps.pretrain import run_pretrain
from scdd.steps.probe import run_probe, run_probe_labellers
from scdd.steps.recover import run_recover
from scdd.steps.relabel import run_baseline, run_relabel
from scdd.steps.represent import run_represent
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
    "PairPlan",
    "check_later_steps",
    "load_instead",
    "plan_pairs",
    "run_baseline",
    "run_baseline_pairs",
    "run_condense",
    "run_condense_pairs",
    "run_decode",
    "run_posttrain",
    "run_pretrain",
    "run_probe",
    "run_probe_labellers",
    "run_recover",
    "run_relabel",
    "run_represent",
    "run_select",
    "run_squeeze",
    "run_squeeze_labellers",
    "run_squeeze_scorer",
    "student_seed",
    "teacher_record",
]
