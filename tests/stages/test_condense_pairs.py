"""Pairs learnt in seconds: the loss falls, every part is learnt, a kill changes nothing."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scdd.bilevel.kernel_regression import regression_loss
from scdd.bilevel.model_pool import first_age
from scdd.bilevel.pairs import Pairs, learnt, pairs_from, parts_of, shown, starting_parts
from scdd.bilevel.regressor import new_regressor, trunk_of
from scdd.bilevel.sizes import plan_sizes
from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.condense_pairs import CondensePairsConfig
from scdd.distilled.bill import budget_floats, storage_floats
from scdd.distilled.factored import FactoredSet, gram_error
from scdd.errors import RunError
from scdd.stages import condense_pairs as stage
from scdd.stages.condense_pairs import Condensed, condense_pairs, support_views
from tests.bilevel.tiny_pairs import BASES, CPU, DIM, RAW, SIZE, STORED, settings, source, teacher

Line = dict[str, Any]


def run(
    cfg: CondensePairsConfig,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    seed: int = 0,
    log: Callable[..., None] = lambda **values: None,
) -> Condensed:
    return condense_pairs(cfg, teacher(), source(), SIZE, seed, CPU, checkpoint, log)


def everything(found: Condensed) -> dict[str, Tensor]:
    networks = getattr(found.pairs, "approximation", None)
    return parts_of(found.pairs) | dict(enumerate(networks or ()))  # type: ignore[operator]


def assert_same(one: Condensed, other: Condensed) -> None:
    ours, theirs = everything(one), everything(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert one.explained == other.explained
    assert one.losses == other.losses


def judged(pairs: Pairs) -> float:
    """Outer loss on all real images, on the features of new networks that no run has seen."""
    images = (source().images.float() / 255 - 0.5) / 0.25
    wanted, losses = teacher()(images), []
    with torch.random.fork_rng():
        torch.manual_seed(99)
        for _ in range(4):
            net: nn.Module = trunk_of(new_regressor("convnet_krr_w32", SIZE, DIM)).eval()
            with torch.no_grad():
                support, targets = shown(pairs, stored=True)
                loss = regression_loss(net(support), targets, net(images), wanted, 1e-6)
            losses.append(float(loss))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("lr", "changes"), [(2e-3, RAW), (1e-2, {})])
def test_in_200_steps_the_outer_loss_falls_by_more_than_30_per_cent(lr: float, changes: dict):
    before = run(settings(steps=1, lr=1e-12, outer_aug="none", **changes))
    after = run(settings(steps=200, lr=lr, outer_aug="none", **changes))
    assert judged(after.pairs) < 0.7 * judged(before.pairs)
    start, end = after.losses
    assert end < 0.7 * start
    # The same models judge both times: where nothing is learnt they say the same.
    assert before.losses == pytest.approx((start, start), rel=1e-3)


@pytest.mark.parametrize("changes", [RAW, STORED])
def test_the_first_step_is_that_of_adam_on_every_learnt_number(changes: dict):
    # In channels-last memory a gradient that lay otherwise than its tensor would go elsewhere.
    seen: list[Any] = []
    batches, grow = stage.real_batches, stage.grow

    def watched_batches(*args: Any) -> Any:
        for batch in batches(*args):
            seen.append(batch)
            yield batch

    def watched_grow(cfg: Any, model: Any, *args: Any) -> None:
        seen.append(copy.deepcopy(model.net))
        grow(cfg, model, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "real_batches", watched_batches)
        patch.setattr(stage, "grow", watched_grow)
        patch.setattr(stage, "orthonormalise", lambda pairs: None)
        cfg = settings(steps=1, bases={"lr_share": 0.5}, **changes)
        after = parts_of(run(cfg).pairs)
    sizes = plan_sizes(cfg, 60, SIZE, DIM)
    start = starting_parts(cfg, sizes, teacher(), source(), 0, CPU)
    pairs = pairs_from(cfg, SIZE, start)
    batch, net = seen
    trunk = net.eval().trunk
    images, targets = shown(pairs)
    loss = regression_loss(trunk(images), targets, trunk(batch.images), batch.targets, cfg.ridge)
    loss.backward()
    for name, tensor in learnt(pairs).items():
        assert tensor.grad is not None
        rate = cfg.lr * (0.5 if name.endswith("basis") else 1)
        moved = after[name] - tensor.detach()
        large = tensor.grad.abs() > 1e-6  # Adam's first step is the sign, but for its epsilon.
        assert large.float().mean() > 0.5, name
        expected = -rate * tensor.grad.sign()[large]
        torch.testing.assert_close(moved[large], expected, atol=2e-2 * rate, rtol=0)


def test_the_log_says_how_the_loss_falls_and_the_rate_with_it():
    lines: list[Line] = []
    cfg = settings(steps=100, lr=1e-2, pool={"age": 4})
    run(cfg, log=lambda **values: lines.append(values))
    assert [line["step"] for line in lines] == [50, 100]
    assert [line["lr"] for line in lines] == pytest.approx([1e-2 * 0.51, 1e-2 * 0.01])
    assert lines[1]["outer_loss"] < lines[0]["outer_loss"]


@pytest.mark.parametrize("changes", [RAW, BASES, STORED, {}])
def test_a_set_is_within_its_budget_and_of_the_sizes_that_are_told(changes: dict):
    found = run(settings(steps=2, **changes))
    paid = everything(found)
    if changes == {}:
        del paid["view_coefficients"]
    taken = sum(part.numel() for part in paid.values())
    assert taken == storage_floats(found.sizes) <= budget_floats(10, SIZE, DIM)
    assert len(found.rows) == found.sizes.pairs == len(found.pairs) == 6


@pytest.mark.parametrize(
    ("support", "reached"), [("all", (0, 1, 2)), ("base", ()), ("cycle", (0, 1, 2))]
)
def test_targets_of_turned_views_are_learnt_where_they_are_in_the_support(support, reached):
    before = run(settings(steps=1, lr=1e-12, outer_support=support, **STORED)).pairs
    after = run(settings(steps=4, outer_support=support, **STORED)).pairs
    for view in range(3):
        moved = (after.targets(1 + view) - before.targets(1 + view)).norm()
        # Where they get no gradient they follow the basis alone.
        basis = after.targets(1 + view).sub(after.target_mean) @ after.target_basis.T
        assert moved > 0 and basis.isfinite().all()
    pulled = gradient_of_views(support)
    assert tuple(view for view in range(3) if pulled[view] > 0) == (
        reached if support != "cycle" else (0,)
    )


def gradient_of_views(support: str) -> list[float]:
    """Largest gradient of the coefficients of each turned view in the first step."""
    cfg = settings(outer_support=support, **STORED)
    seen: list[Tensor | None] = []
    step = torch.optim.AdamW.step

    def watched(optimizer: Any, *args: Any) -> Any:
        (views,) = optimizer.param_groups[-1]["params"]
        seen.append(None if views.grad is None else views.grad.clone())
        return step(optimizer, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", watched)
        run(cfg)
    assert len(seen) == cfg.steps
    first = seen[0]
    return [0.0] * 3 if first is None else first.abs().amax(dim=(1, 2)).tolist()


def test_a_cycle_takes_every_turned_view_in_its_turn():
    cfg = settings(outer_support="cycle")
    assert [support_views(cfg, step) for step in range(4)] == [(0, 1), (0, 2), (0, 3), (0, 1)]
    assert support_views(settings(), 5) == (0, 1, 2, 3)
    assert support_views(settings(outer_support="base"), 5) == (0,)
    assert support_views(settings(**BASES), 5) == (0,)


@pytest.mark.parametrize("mode", ["export", "every_k", "penalty"])
def test_bases_are_orthonormal_at_the_end_whatever_keeps_them_so(mode: str):
    changes = {"orthogonality": mode, "every": 5, "penalty": 10.0, "lr_share": 1.0}
    found = run(settings(bases=changes, lr=0.05)).pairs
    assert isinstance(found, FactoredSet)
    assert gram_error(found.image_basis) < 1e-5
    assert gram_error(found.target_basis) < 1e-5


def test_a_penalty_keeps_bases_nearer_to_orthonormal_and_every_k_brings_them_back():
    def errors(mode: str) -> list[float]:
        seen: list[float] = []
        real = stage.grow

        def watched(*args: Any) -> None:
            seen.append(gram_error(held[0].pairs.image_basis))
            real(*args)

        held: list[Any] = []
        begin = stage._begin

        def kept(*args: Any) -> Any:
            held.append(begin(*args))
            return held[0]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage, "grow", watched)
            patch.setattr(stage, "_begin", kept)
            changes = {"orthogonality": mode, "every": 6, "penalty": 10.0, "lr_share": 1.0}
            run(settings(bases=changes, lr=0.02))
        return seen

    free, penalised, often = errors("export"), errors("penalty"), errors("every_k")
    assert free[-1] > 0.05 and penalised[-1] < free[-1] / 2
    assert max(often[5], often[11]) < 1e-5 < often[4]


def test_the_rate_of_the_bases_is_a_share_of_that_of_the_coefficients():
    still = run(settings(bases={"lr_share": 0.0}, steps=3)).pairs
    start = run(settings(steps=1, lr=1e-12)).pairs
    torch.testing.assert_close(still.image_basis, start.image_basis, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(still.image_coefficients, start.image_coefficients, atol=1e-3)


def test_the_price_of_the_approximation_can_be_measured():
    found = run(settings())
    assert len(found.explained) == 3 and all(share <= 1 for share in found.explained)
    stored, predicted = shown(found.pairs, stored=True)[1], shown(found.pairs)[1]
    assert torch.equal(stored[:6], predicted[:6])
    assert not torch.allclose(stored[6:], predicted[6:])
    without = run(settings(**STORED))
    assert without.explained == ()
    assert torch.equal(shown(without.pairs)[1], stored), (
        "the networks have no say in what is learnt"
    )


def test_the_same_seed_gives_the_same_set_and_another_one_another():
    first, again, other = run(settings()), run(settings()), run(settings(), seed=1)
    assert_same(first, again)
    assert not torch.equal(first.rows, other.rows)


def test_a_teacher_table_changes_nothing_but_rounding():
    ours, theirs = (shown(run(settings(outer_aug="flip", cache_gib=c)).pairs) for c in (1.0, 0.0))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-2)


def test_labels_have_no_say():
    train = source()
    train.labels = train.labels.flip(0)
    found = condense_pairs(settings(), teacher(), train, SIZE, 0, CPU)
    assert_same(found, run(settings()))


class Killed(Exception):
    """Stands for a kill."""


class Mortal(Checkpoint):
    """A checkpoint that is due after every step, and a kill after some of them."""

    def __init__(self, path: Path, left: int) -> None:
        super().__init__(path, 0)
        self.left = left

    def save(self, state: dict[str, Any]) -> None:
        super().save(state)
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.mark.parametrize(
    "changes",
    [
        RAW,
        {"bases": {"orthogonality": "every_k", "every": 3}},
        {"outer_support": "cycle", "pool": {"reset_counter": False}, **STORED},
    ],
)
def test_killed_after_any_step_it_goes_on_to_the_same_set_bit_for_bit(
    changes: dict, tmp_path: Path
):
    cfg = settings(steps=5, pool={"age": 3}, **{k: v for k, v in changes.items() if k != "pool"})
    lines: list[Line] = []
    whole, logged = run(cfg, log=lambda **values: lines.append(values)), len(lines)
    for left in range(1, 100):
        path = tmp_path / f"{left}.pt"
        try:
            found = run(cfg, Mortal(path, left))
        except Killed:
            found = run(cfg, Checkpoint(path, 1e9), log=lambda **values: lines.append(values))
        else:
            break
        assert_same(found, whole)
    # Once by the whole run, and by all that were killed before the last step.
    ages = sum(first_age(cfg.pool, index, 0) for index in range(cfg.pool.models))
    assert left - 1 == 2 * ages + cfg.steps, "new models at the start and the end, and every step"
    assert logged == 1 and lines == [lines[0]] * (left - 1 - ages)


def test_a_rate_beyond_all_reason_ends_in_one_sentence():
    with pytest.raises(RunError, match=r"^condense_pairs: .*--redo condense_pairs$"):
        run(settings(lr=1e30, steps=4, **RAW))


def test_what_is_no_number_is_not_saved(tmp_path: Path):
    checkpoint = Checkpoint(tmp_path / "c.pt", 0)
    with pytest.raises(RunError):
        run(settings(lr=1e38, steps=4, **RAW), checkpoint)
    state = checkpoint.load()
    assert state is None or all(part.isfinite().all() for part in state["pairs"].values())
