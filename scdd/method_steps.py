"""Methods as lists of steps: what each step reads and shows, and which a configuration asks for."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from scdd.config.run import RunConfig
from scdd.report import run_report
from scdd.report_pairs import run_report_pairs
from scdd.steps import (
    Context,
    run_baseline,
    run_baseline_pairs,
    run_condense,
    run_condense_pairs,
    run_decode,
    run_posttrain,
    run_pretrain,
    run_probe,
    run_probe_labellers,
    run_recover,
    run_relabel,
    run_represent,
    run_select,
    run_squeeze,
    run_squeeze_labellers,
    run_squeeze_scorer,
)


@dataclass(frozen=True)
class Step:
    """One folder of the run directory.

    `sections` are the parts of the configuration that the step depends on, `inputs` the steps
    whose files it reads, `shown` those it may make that also stand at the top of the run directory;
    `reads_images` tells whether it sees real images and `images` which section names them, where it
    is given (else `dataset`); `sharded` whether ranks share its work.
    """

    name: str
    run: Callable[[Context, str], tuple[str, ...]]
    sections: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    reads_images: bool = True
    images: str = "dataset"
    sharded: bool = False


NETWORKS = (
    Step("squeeze", run_squeeze, ("squeeze",), images="squeeze_dataset", sharded=True),
    Step("squeeze_labellers", run_squeeze_labellers, ("squeeze_labellers",), sharded=True),
    Step("probe", run_probe, ("probe",), ("squeeze",), ("teacher.safetensors",), sharded=True),
    Step("probe_labellers", run_probe_labellers, ("probe",), ("squeeze_labellers",), sharded=True),
)
TEACHERS = ("probe", "probe_labellers")

RECOVER = Step(
    "recover", run_recover, ("recover", "ipc"), TEACHERS, reads_images=False, sharded=True
)
REAL_START = (
    Step("recover_real", run_recover, ("recover_real", "ipc"), TEACHERS, sharded=True),
    Step(
        "relabel_real",
        run_relabel,
        ("relabel", "recipe"),
        (*TEACHERS, "recover_real"),
        ("real_start.h5",),
        reads_images=False,
        sharded=True,
    ),
)
BASELINE = Step(
    "baseline",
    run_baseline,
    ("relabel", "recipe", "ipc"),
    TEACHERS,
    ("random_real.h5",),
    sharded=True,
)


def _method(images: Step, *arms: Step, before: tuple[Step, ...] = ()) -> tuple[Step, ...]:
    """The steps of a method that makes its images by `images` and labels them by the teachers.

    `arms` are the steps of what its students are compared with; those that show a file label it.
    """
    relabel = Step(
        "relabel",
        run_relabel,
        ("relabel", "recipe"),
        (*TEACHERS, images.name),
        ("distilled.h5",),
        reads_images=False,
        sharded=True,
    )
    labelled = tuple(arm.name for arm in arms if arm.shown)
    posttrain = Step(
        "posttrain",
        run_posttrain,
        ("posttrain",),
        ("relabel", *labelled),
        ("results.json",),
        sharded=True,
    )
    report = Step(
        "report",
        run_report,
        (),
        ("probe", "posttrain"),
        ("report.md", "gallery.png", "recover_losses.png", "recover_real_losses.png"),
        reads_images=False,
    )
    # What needs no network comes first, so that it stays when those are made anew.
    made = (*NETWORKS, *before, images) if images.inputs else (images, *NETWORKS, *before)
    return (*made, relabel, *arms, posttrain, report)


def _selecting(*networks: str) -> Step:
    return Step("select", run_select, ("select", "ipc"), (*networks, "probe"), sharded=True)


SCDD = _method(RECOVER, *REAL_START, BASELINE)
RANDOM = _method(_selecting())
FEATURES = _method(_selecting("squeeze"), BASELINE)
SCORER = Step("squeeze_scorer", run_squeeze_scorer, ("squeeze", "squeeze_scorer"), sharded=True)
FORGETTING = _method(_selecting("squeeze", "squeeze_scorer"), BASELINE, before=(SCORER,))

DM = _method(Step("condense", run_condense, ("condense", "ipc")), BASELINE)

CONDENSE_PAIRS = Step(
    "condense_pairs", run_condense_pairs, ("condense_pairs",), ("squeeze",), ("distilled.h5",)
)


def _pairs(*made: Step, sections: tuple[str, ...]) -> tuple[Step, ...]:
    """The steps of a method that makes images with representations, the last of `made` the file.

    `sections` say how large it is, and so with how many real images it is compared.
    """
    pairs = made[-1].name
    baseline = Step(
        "baseline_pairs", run_baseline_pairs, sections, ("squeeze",), ("random_real.h5",)
    )
    pretrain = Step(
        "pretrain",
        run_pretrain,
        ("pretrain",),
        (pairs, "baseline_pairs"),
        ("results.json",),
        sharded=True,
    )
    report = Step(
        "report",
        run_report_pairs,
        (),
        (pairs, "pretrain"),
        ("report.md", "gallery.png"),
        reads_images=False,
    )
    return (*made, baseline, pretrain, report)


PAIRS = _pairs(NETWORKS[0], CONDENSE_PAIRS, sections=("condense_pairs",))
"""Of the second family: no image has a class."""

SCDD_PAIRS = _pairs(
    *NETWORKS,
    RECOVER,
    Step(
        "represent",
        run_represent,
        ("represent",),
        ("squeeze", "recover"),
        ("distilled.h5",),
        reads_images=False,
    ),
    sections=("represent", "ipc"),
)
LABELLED_PAIRS = _method(
    Step("decode", run_decode, (), ("probe", "condense_pairs"), reads_images=False),
    replace(BASELINE, sections=("relabel", "recipe", "condense_pairs")),
    before=(replace(CONDENSE_PAIRS, shown=()),),
)
"""Bridges: images of one family with the targets of the other."""

METHODS = {
    "scdd": SCDD,
    "sre2l": SCDD,
    "random": RANDOM,
    "herding": FEATURES,
    "k_center": FEATURES,
    "forgetting": FORGETTING,
    "dm": DM,
    "krr_st": PAIRS,
    "boost": PAIRS,
    "scdd_pairs": SCDD_PAIRS,
    "krr_st_labels": LABELLED_PAIRS,
    "boost_labels": LABELLED_PAIRS,
}


def steps_of(cfg: RunConfig) -> tuple[Step, ...]:
    """The steps that a configuration asks for, in order."""
    left_out: tuple[str, ...] = ()
    if cfg.recover_real is None:
        left_out += ("recover_real", "relabel_real")
    if not cfg.squeeze_labellers:
        left_out += ("squeeze_labellers", "probe_labellers")
    if cfg.scorer is None:
        left_out += ("squeeze_scorer",)
    return tuple(
        replace(
            step,
            inputs=tuple(
                name
                for name in step.inputs
                if name not in left_out and _reads(cfg, step.name, name)
            ),
            images=step.images if getattr(cfg, step.images) is not None else "dataset",
        )
        for step in METHODS[cfg.method]
        if step.name not in left_out
    )


def _reads(cfg: RunConfig, step: str, earlier: str) -> bool:
    """Whether a step reads an input of its list: labellers only where it uses them."""
    return earlier != "probe_labellers" or list(cfg.teachers_of(step)) != ["squeeze"]
