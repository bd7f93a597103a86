"""Condense pairs: learn images and their representations (KRR-ST, Algorithm 1; Boost on top).

In turn, one online model judges the pairs by kernel ridge regression on real images, and is then
trained one step on the changed pairs. No gradient goes through the training.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scdd.bilevel.approximation import fit_approximation
from scdd.bilevel.bases import orthogonality_penalty
from scdd.bilevel.judging import judged, judging_batch
from scdd.bilevel.kernel_regression import full_precision, regression_loss
from scdd.bilevel.model_pool import (
    OnlineModel,
    chosen_model,
    first_age,
    grow,
    inner_step,
    new_pool,
)
from scdd.bilevel.pairs import (
    BASES,
    learnt,
    orthonormalise,
    pairs_from,
    parts_of,
    shown,
    start_rows,
    starting_parts,
    without_gradient,
)
from scdd.bilevel.passes import Passes, passes_of
from scdd.bilevel.real_views import RealBatch, real_batches, teacher_table, worth_a_table
from scdd.bilevel.regressor import trunk_of
from scdd.bilevel.sizes import plan_sizes
from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.condense_pairs import CondensePairsConfig
from scdd.datasets.sources import ImageSource
from scdd.distilled.bill import Sizes
from scdd.distilled.factored import FactoredSet
from scdd.distilled.pairs import DenseSet, Pairs
from scdd.errors import RunError
from scdd.progress import Bar
from scdd.seeding import generator
from scdd.training import SHARE, fitting_threads, set_lr

Log = Callable[..., None]
REPORT_EVERY = 50
"""Outer steps whose mean loss is logged."""


class Condensed(NamedTuple):
    """The pairs, and what is to be said of them."""

    pairs: Pairs
    """With orthonormal bases, and with `approximation` and the stored coefficients that it stands
    for."""
    sizes: Sizes
    """For the bill."""
    rows: Tensor
    """int64 [m]: the real images that they started from."""
    explained: tuple[float, ...]
    """R^2 of the approximation of each turned view; empty without."""
    losses: tuple[float, ...]
    """Outer loss of new models, on the pairs as they started and as they ended."""


def condense_pairs(
    cfg: CondensePairsConfig,
    teacher: nn.Module,
    train: ImageSource,
    image_size: int,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    log: Log = lambda **values: None,
) -> Condensed:
    """Return pairs within the budget on which networks learn what the teacher knows.

    Args:
        cfg: the settings.
        teacher: frozen backbone, normalised images [B, 3, S, S] to representations [B, d].
        train: the real images; labels are not looked at.
        image_size: S.
        seed: of the run.
        device: where to compute.
        checkpoint: the state of everything.
        log: called with the step, mean outer loss and rate, now and then.

    Raises:
        ConfigError: if the sizes do not fit the images or the budget.
        RunError: if the kernel or the loss stops being finite.
    """
    target_dim = int(teacher.feature_dim)  # type: ignore[arg-type]
    sizes = plan_sizes(cfg, len(train), image_size, target_dim)
    teacher = teacher.to(device).eval().requires_grad_(False)
    saved = checkpoint.load()
    parts = (
        starting_parts(cfg, sizes, teacher, train, seed, device)
        if saved is None
        else {name: part.to(device) for name, part in saved["pairs"].items()}
    )
    state = _begin(cfg, pairs_from(cfg, image_size, parts), seed, device)
    if saved is not None:
        _restore(state, saved)
    views = state.pairs.num_views * sizes.pairs
    example = torch.empty(cfg.batch + views, 3, image_size, image_size, device=device)
    with fitting_threads(trunk_of(state.pool[0].net), example, passes=3), full_precision():
        support = len(support_views(cfg, 0)) * sizes.pairs
        passes = passes_of(cfg, views, support, image_size, target_dim, device)
        table = None
        if state.step < cfg.steps and worth_a_table(cfg, len(train), target_dim):
            table = teacher_table(cfg, teacher, train, device)
        ages = [first_age(cfg.pool, model.index, seed) for model in state.pool]
        with Bar("condense_pairs", cfg.steps + 2 * sum(ages), _done(cfg, state, ages)) as bar:
            judges = judging_batch(cfg, teacher, train, seed, device)
            if not state.judged:
                _age_models(cfg, passes, state, ages, checkpoint, bar)
                state.judged = (judged(cfg, state.pool, state.pairs, judges, passes),)
            for batch in real_batches(cfg, train, teacher, table, seed, device, state.step):
                _step(cfg, passes, state, batch, seed)
                bar.advance(note=f"step {state.step}/{cfg.steps}")
                if state.step % REPORT_EVERY == 0 or state.step == cfg.steps:
                    _report(cfg, state, log)
                if checkpoint.due:
                    _check(state)
                    checkpoint.save(_saved(state))
            if not state.ended:
                state.pool = new_pool(cfg.pool, image_size, target_dim, seed, device)
                state.ended = True
            _age_models(cfg, passes, state, ages, checkpoint, bar)
            losses = *state.judged, judged(cfg, state.pool, state.pairs, judges, passes)
    pairs, explained = _finished(cfg, state.pairs, seed)
    return Condensed(pairs, sizes, start_rows(train, sizes.pairs, seed), explained, losses)


def support_views(cfg: CondensePairsConfig, step: int) -> tuple[int, ...]:
    """The views that the regression of a step is fitted on."""
    turned = len(cfg.turns) - 1
    if cfg.outer_support == "base" or not turned:
        return (0,)
    if cfg.outer_support == "cycle":
        return 0, 1 + step % turned
    return tuple(range(1 + turned))


@dataclass(eq=False)
class _State:
    """All that changes."""

    pairs: Pairs
    optimizer: torch.optim.Optimizer
    pool: list[OnlineModel]
    losses: Tensor
    """[2]: sum of the outer losses since the last report, and how many; on the device."""
    step: int = 0
    """Outer steps done."""
    judged: tuple[float, ...] = ()
    """What new models said before the first step, once they have."""
    ended: bool = False
    """After the last step, when the pool is one of new models again."""


def _begin(cfg: CondensePairsConfig, pairs: Pairs, seed: int, device: torch.device) -> _State:
    _, targets = shown(pairs, (0,))
    size, target_dim = pairs.images().shape[-1], targets.shape[1]
    pool = new_pool(cfg.pool, size, target_dim, seed, device)
    losses = torch.zeros(2, dtype=torch.float64, device=device)
    return _State(pairs, _optimizer(cfg, pairs), pool, losses)


def _optimizer(cfg: CondensePairsConfig, pairs: Pairs) -> torch.optim.Optimizer:
    groups = [
        {"params": [tensor], SHARE: cfg.bases.lr_share if name in BASES else 1.0}
        for name, tensor in learnt(pairs).items()
    ]
    # Weight decay, 0.01 where nothing is said, would pull coefficients to 0.
    return torch.optim.AdamW(groups, lr=cfg.lr, weight_decay=0.0, fused=True)


def _done(cfg: CondensePairsConfig, state: _State, ages: list[int]) -> int:
    """Steps done, outer ones and those of ageing."""
    if not state.judged or state.ended:
        before = sum(ages) + cfg.steps if state.ended else 0
        return before + sum(model.age for model in state.pool)
    return sum(ages) + state.step


def _age_models(
    cfg: CondensePairsConfig,
    passes: Passes,
    state: _State,
    ages: list[int],
    checkpoint: Checkpoint,
    bar: Bar,
) -> None:
    """Train new models on the pairs as they are, each to an age of its own."""
    with torch.no_grad():
        images, targets = shown(state.pairs)
    for model, age in zip(state.pool, ages, strict=True):
        while model.age < age:
            inner_step(cfg.pool, model, images, targets, passes)
            bar.advance(note="models are trained to different ages")
            if checkpoint.due:
                checkpoint.save(_saved(state))


def _step(
    cfg: CondensePairsConfig, passes: Passes, state: _State, batch: RealBatch, seed: int
) -> None:
    """One outer step, and with the same model an inner one on the changed pairs."""
    set_lr(state.optimizer, cfg.lr + (cfg.final_lr - cfg.lr) * state.step / cfg.steps)
    model = state.pool[chosen_model(cfg.pool, state.step, seed)]
    tensors = list(learnt(state.pairs).values())
    loss = _outer_loss(cfg, passes, state, model, batch)
    state.optimizer.zero_grad()
    # Not `autograd.grad`: what `backward` leaves lies in memory as the tensors do, which the fused
    # optimiser relies on.
    (loss + _penalty(cfg, state.pairs)).backward(inputs=tensors)
    state.optimizer.step()
    state.losses += torch.stack([loss.detach(), torch.ones_like(loss)])
    state.step += 1
    often = cfg.bases.orthogonality == "every_k" and state.step % cfg.bases.every == 0
    if often and isinstance(state.pairs, FactoredSet):
        orthonormalise(state.pairs)
        state.optimizer.state.clear()
    with torch.no_grad():
        images, targets = shown(state.pairs)
    grow(cfg.pool, model, images, targets, state.step, seed, passes)


def _outer_loss(
    cfg: CondensePairsConfig,
    passes: Passes,
    state: _State,
    model: OnlineModel,
    batch: RealBatch,
) -> Tensor:
    """Error [] on real images of the regression on the pairs, with the model in eval mode."""
    # So that compiled passes, which know of no `inputs=`, do without gradients of the weights too.
    trunk = trunk_of(model.net.eval().requires_grad_(False))
    images, targets = shown(state.pairs, support_views(cfg, state.step))
    with torch.no_grad():
        queries = passes.features(trunk, batch.images)
    support = passes.features(trunk, images)
    return regression_loss(support, targets, queries, batch.targets, cfg.ridge)


def _penalty(cfg: CondensePairsConfig, pairs: Pairs) -> Tensor | float:
    if cfg.bases.orthogonality != "penalty" or isinstance(pairs, DenseSet):
        return 0.0
    bases = (pairs.image_basis, pairs.target_basis)
    return cfg.bases.penalty * sum(orthogonality_penalty(basis) for basis in bases)


def _report(cfg: CondensePairsConfig, state: _State, log: Log) -> None:
    _check(state)
    loss, count = state.losses.tolist()
    state.losses.zero_()
    log(step=state.step, outer_loss=loss / count, lr=state.optimizer.param_groups[-1]["lr"])


def _check(state: _State) -> None:
    """Refuse to go on from, or to save, what is no number."""
    loss, _ = state.losses.tolist()
    parts = learnt(state.pairs)
    lost = [name for name, tensor in parts.items() if not bool(tensor.isfinite().all())]
    if lost or not math.isfinite(loss):
        found = f"{lost[0]} holds values that are no numbers" if lost else f"the loss is {loss}"
        raise RunError(
            f"condense_pairs: {found} after step {state.step}; lower condense_pairs.lr or "
            "condense_pairs.pool.lr and run again with --redo condense_pairs"
        )


def _finished(cfg: CondensePairsConfig, pairs: Pairs, seed: int) -> tuple[Pairs, tuple[float, ...]]:
    """Orthonormal bases, then networks for what the turned views have become."""
    if isinstance(pairs, DenseSet):
        return DenseSet(pairs.turns, **parts_of(pairs)), ()
    orthonormalise(pairs)
    pairs = without_gradient(pairs)
    if not cfg.approximation:
        return pairs, ()
    assert pairs.view_coefficients is not None
    networks, explained = fit_approximation(
        cfg.approximate,
        pairs.target_coefficients,
        pairs.view_coefficients,
        generator(seed, "condense_pairs.approximation"),
    )
    return replace(pairs, approximation=networks), explained


def _saved(state: _State) -> dict[str, Any]:
    return {
        "step": state.step,
        "pairs": parts_of(state.pairs),
        "optimizer": state.optimizer.state_dict(),
        "pool": [model.state() for model in state.pool],
        "losses": state.losses,
        "judged": state.judged,
        "ended": state.ended,
    }


def _restore(state: _State, saved: dict[str, Any]) -> None:
    """All but the pairs, which are there already."""
    state.step, state.judged, state.ended = saved["step"], saved["judged"], saved["ended"]
    state.optimizer.load_state_dict(saved["optimizer"])
    for model, kept in zip(state.pool, saved["pool"], strict=True):
        model.restore(kept)
    state.losses.copy_(saved["losses"])
