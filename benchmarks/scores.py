"""Scores of a run by name: what networks learnt from, and how they were trained or tried."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from scdd.config.run import RunConfig
from scdd.errors import ConfigError
from scdd.method_steps import steps_of
from scdd.stages.finetune import TUNED
from scdd.stages.pretrain import LINEAR, UNTRAINED
from scdd.steps.pretrain import DISTILLED, LABELS, RANDOM, STORED


def scores_of(cfg: RunConfig) -> list[str]:
    """Names of the scores that a run of this configuration has; of several tasks, of the first.

    `distilled, soft`: students of these images with soft labels; `distilled, linear probe`:
    networks that were pre-trained on these pairs.
    """
    if any(step.name == "pretrain" for step in steps_of(cfg)):
        assert cfg.pretrain is not None
        stored = cfg.condense_pairs is not None and cfg.condense_pairs.approximation
        arms = [DISTILLED, *([STORED] if stored else []), RANDOM, LABELS, UNTRAINED]
        ways: Sequence[str] = [LINEAR, *([TUNED] if cfg.pretrain.finetune is not None else [])]
    else:
        arms = ["distilled"]
        arms += ["distilled, real start"] if cfg.recover_real is not None else []
        arms += ["random real"] if cfg.has_baseline else []
        ways = cfg.posttrain.labels
    return [f"{arm}, {way}" for arm in arms for way in ways]


def check_score(score: str, cfg: RunConfig) -> None:
    """Refuse a score that no network of a run will have.

    Raises:
        ConfigError: with those that there are.
    """
    known = scores_of(cfg)
    if score not in known:
        raise ConfigError(f"scores: no network has '{score}'; known: {'; '.join(known)}")


def top1_of(rows: Sequence[Mapping[str, Any]], score: str) -> float:
    """Mean top-1 of the networks of a run that have this score.

    Args:
        rows: of results.json.
        score: its name.

    Raises:
        ConfigError: if there are none.
    """
    first = rows[0].get("task") if rows else None
    named = [
        (f"{row['arm']}, {row['by'] if 'by' in row else row['labels']}", row["top1"])
        for row in rows
        if row.get("task") == first
    ]
    found = [top1 for name, top1 in named if name == score]
    if not found:
        there = "; ".join(dict.fromkeys(name for name, _ in named))
        raise ConfigError(f"no network has the score '{score}'; there are: {there}")
    return fmean(found)
