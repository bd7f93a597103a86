"""How much work each step of a configuration is, and what a unit of it takes: t = a + b * n."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from scdd.config.posttrain import PosttrainConfig
from scdd.config.run import RunConfig
from scdd.config.squeeze import SqueezeConfig
from scdd.errors import ConfigError
from scdd.method_steps import steps_of

Units = dict[str, float]
"""Counts of work by what is counted; a step without any takes the same time at any size."""


class Sizes(NamedTuple):
    """Of the real images."""

    train: int
    val: int
    classes: int
    squeezed: int
    """Training images of squeeze, if those are others."""


def work(cfg: RunConfig, sizes: Sizes) -> dict[str, Units]:
    """Units of work of every step.

    Raises:
        ConfigError: if the method has a step that is not known here.
    """
    if cfg.pairs_from is not None:
        raise ConfigError(
            f"method {cfg.method}: what its steps cost is not told from short runs yet; time a "
            "whole run"
        )
    rows = sizes.classes * cfg.ipc
    labelled = {"image views": float(rows * cfg.relabel.views)}
    of = {
        "squeeze": _squeezes([(cfg.squeeze, sizes.squeezed)], sizes.val),
        "squeeze_labellers": _squeezes(
            [(s, sizes.train) for s in cfg.squeeze_labellers], sizes.val
        ),
        "probe": _probes(cfg, [cfg.squeeze], sizes),
        "probe_labellers": _probes(cfg, cfg.squeeze_labellers, sizes),
        **{
            step: {"image iterations": float(rows * section.iterations)}
            for step, section in cfg.recoveries.items()
        },
        **dict.fromkeys(("relabel", "relabel_real", "baseline"), labelled),
        "select": {"images": float(sizes.train)},
        "squeeze_scorer": _squeezes(
            [] if cfg.scorer is None else [(cfg.scorer, sizes.train)], sizes.val
        ),
        "condense": _condensations(cfg, sizes),
        "posttrain": _students(cfg, rows, sizes.val),
        "report": {},
    }
    unknown = [step.name for step in steps_of(cfg) if step.name not in of]
    if unknown:
        raise ConfigError(
            f"method {cfg.method}: nobody has said what the work of its step {unknown[0]} is; say "
            "it in benchmarks/stage_work.py"
        )
    return {step.name: dict(of[step.name]) for step in steps_of(cfg)}


def steps_of_an_epoch(cfg: PosttrainConfig, rows: int) -> int:
    """Steps that post-training makes of one pass over the images."""
    return math.ceil(math.ceil(rows / cfg.micro_batch) / cfg.micro_batches)


def knn_checks(cfg: SqueezeConfig) -> int:
    """How often squeeze looks at nearest neighbours: every so many epochs and at the end."""
    every = cfg.knn_every
    return cfg.epochs // every + (cfg.epochs % every > 0) if every else 0


def _condensations(cfg: RunConfig, sizes: Sizes) -> Units:
    """Real images that pass a random network, and our own, which pass it twice."""
    section = cfg.condense
    if section is None:
        return {}
    real = min(section.batch * sizes.classes, sizes.train)
    return {"image iterations": float(section.iterations * (real + 2 * sizes.classes * cfg.ipc))}


def _squeezes(trained: Sequence[tuple[SqueezeConfig, int]], val: int) -> Units:
    own = [(cfg, images) for cfg, images in trained if cfg.checkpoint is None]
    return {
        "steps": float(sum(cfg.epochs * (images // cfg.batch) for cfg, images in own)),
        "images of kNN": float(sum(knn_checks(cfg) * (images + val) for cfg, images in own)),
    }


def _probes(cfg: RunConfig, networks: Sequence[SqueezeConfig], sizes: Sizes) -> Units:
    """Images through a backbone, each of which is probed as it is at the end and as it was kept."""
    probe = cfg.probe
    looks = {
        "lbfgs": 1 + probe.crops,
        "sgd": int(probe.standardise or len(probe.lr) > 1) + probe.epochs_over_train,
        "given": 0,
    }[probe.solver]
    count = sum(1 + len(network.keep_epochs) for network in networks)
    return {"images": float(count * (looks * sizes.train + sizes.val))}


def _students(cfg: RunConfig, rows: int, val: int) -> Units:
    training = cfg.posttrain
    labelled = {"relabel", "relabel_real", "baseline"}
    arms = sum(step.name in labelled for step in steps_of(cfg))
    students = arms * len(training.labels) * training.seeds
    every = training.evaluate_every
    scored = 1 + (training.epochs // every if every else 0)
    return {
        "steps": float(students * training.epochs * steps_of_an_epoch(training, rows)),
        "images scored": float(students * scored * val),
    }


class Cost(NamedTuple):
    """What a step takes: `fixed` seconds, and `each` seconds a unit."""

    fixed: float
    each: Units

    def seconds(self, units: Mapping[str, float]) -> float:
        """Of so many units."""
        return self.fixed + sum(self.each[name] * count for name, count in units.items())


def fit(units: Sequence[Mapping[str, float]], seconds: Sequence[float]) -> Cost:
    """Least squares for t = a + sum_k b_k n_k with a, b_k >= 0 over measured runs.

    Least squares of relative errors, so that short runs count as much as long ones. What was the
    same in all runs cannot be told from the fixed cost; it is that where it is so in the whole run
    as well, and has to be varied where it is not.
    """
    names = [name for name in units[0] if len({run[name] for run in units}) > 1]
    scale = {name: max(run[name] for run in units) for name in names}
    design = np.array([[1.0, *(run[name] / scale[name] for name in names)] for run in units])
    weights = 1 / np.maximum(np.array(seconds), 1e-9)
    found, _ = nnls(design * weights[:, None], np.ones(len(seconds)))
    each = dict.fromkeys(units[0], 0.0)
    each |= {name: float(b) / scale[name] for name, b in zip(names, found[1:], strict=True)}
    return Cost(float(found[0]), each)
