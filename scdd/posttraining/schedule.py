"""The learning rate of every step of post-training."""

from scdd.config.posttrain import PosttrainConfig
from scdd.training import cosine

TURN = 5 / 6
"""Share of the training after which SSRS falls on a line (EDC, arXiv:2404.13733)."""


def learning_rate(cfg: PosttrainConfig, step: int, steps_per_epoch: int) -> float:
    """The rate of a step, counted from 0 over the whole training."""
    whole = step if cfg.schedule == "step" else step - step % steps_per_epoch
    return cfg.lr * _factor(cfg, whole / (cfg.epochs * steps_per_epoch))


def _factor(cfg: PosttrainConfig, done: float) -> float:
    """Of the peak rate, after the share `done` in [0, 1) of the training."""
    warmup = cfg.warmup_epochs / cfg.epochs
    if done < warmup:
        return cfg.warmup_from + (1 - cfg.warmup_from) * done / warmup
    if cfg.lr_schedule == "multistep":
        return cfg.gamma ** sum(done >= milestone for milestone in cfg.milestones)
    if cfg.lr_schedule == "ssrs":
        left = min(1.0, (1 - done) / (1 - TURN))
        return left * cosine(min(done, TURN), warmup, cfg.stretch)
    return cosine(done, warmup, cfg.stretch)
