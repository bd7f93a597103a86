"""SwAV against loops in float64 from arXiv:2006.09882, and against lightly."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from scdd.config.objectives import SwavConfig
from scdd.config.squeeze import SqueezeConfig
from scdd.divergence import spread
from scdd.models import create_model
from scdd.objectives import Batch, create_objective
from scdd.objectives.swav import Swav, sinkhorn
from scdd.training import make_optimizer
from tests.objectives.multicrop_training import (
    SIZE,
    assert_close_gradients,
    assert_goes_on_from_its_state_dict,
    batch,
    sixty_steps,
    train,
)

FREE = {"freeze_epochs": 0.0, "queue_from_epoch": 0}


def new(**changes: Any) -> Swav:
    """A small objective in train mode."""
    settings: dict[str, Any] = {"dim": 8, "hidden": 16, "prototypes": 10} | changes
    torch.manual_seed(0)
    return Swav(create_model("resnet8", 0, SIZE), SwavConfig(**settings)).train()


def doubled(objective: Swav) -> Swav:
    """A copy in float64, whose parts the references use."""
    return copy.deepcopy(objective).double()


def embeddings(twin: Swav, of: Batch) -> list[Tensor]:
    """Unit vectors [B, dim] of every view, in float64."""
    views = [view.double() for view in of.views]
    features = [*twin.backbone(torch.cat(views[:2])).chunk(2)]
    if views[2:]:
        features += twin.backbone(torch.cat(views[2:])).chunk(len(views) - 2)
    out = twin.head(torch.cat(features))
    return list((out / (out * out).sum(dim=1, keepdim=True).sqrt()).chunk(len(views)))


def paper_codes(scores: Any, epsilon: float, iterations: int) -> np.ndarray:
    """Algorithm 1 of the paper, [B, K], in float64, whose exponents may reach 700."""
    q = np.exp(np.asarray(scores, dtype=np.float64) / epsilon).T
    q /= q.sum()
    prototypes, images = q.shape
    for _ in range(iterations):
        q = q / q.sum(axis=1, keepdims=True) / prototypes
        q = q / q.sum(axis=0, keepdims=True) / images
    return (q * images).T


SHAPES = st.tuples(st.integers(1, 40), st.integers(2, 40))


def scores_of(shape: tuple[int, int], scale: float, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (scale * (2 * torch.rand(shape, generator=draw) - 1)).float()


@given(SHAPES, st.floats(0.1, 10), st.floats(0.04, 1), st.integers(1, 5), st.integers(0, 99))
def test_codes_are_those_of_the_algorithm_and_each_sums_to_one(
    shape: tuple[int, int], scale: float, epsilon: float, iterations: int, seed: int
):
    scores = scores_of(shape, scale, seed)
    codes = sinkhorn(scores, epsilon, iterations)
    truth = paper_codes(scores.double(), epsilon, iterations)
    # What float32 keeps of an exponent of `scale / epsilon`, and of the sums over the batch.
    error = 1e-5 + 4e-7 * scale / epsilon * iterations
    assert np.abs(codes.numpy() - truth).max() < error
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(shape[0]), rtol=0, atol=1e-5)


@given(SHAPES, st.floats(0.0, 3.0), st.integers(0, 99))
def test_after_many_iterations_every_prototype_has_the_same_share_of_the_images(
    shape: tuple[int, int], sharpness: float, seed: int
):
    codes = sinkhorn(scores_of(shape, sharpness, seed), 1.0, 300)
    share = torch.full((shape[1],), shape[0] / shape[1])
    torch.testing.assert_close(codes.sum(dim=0), share, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(shape[0]), rtol=0, atol=1e-5)


@given(SHAPES, st.floats(1e3, 1e6), st.floats(0.01, 0.1), st.integers(0, 99))
def test_scores_whose_exponential_overflows_still_make_codes(
    shape: tuple[int, int], scale: float, epsilon: float, seed: int
):
    scores = scores_of(shape, 1.0, seed) + scale
    assert (scores / epsilon).exp().isinf().all()
    for each in (scores, -scores):
        codes = sinkhorn(each, epsilon, 3)
        assert codes.isfinite().all() and (codes >= 0).all()
        torch.testing.assert_close(codes.sum(dim=1), torch.ones(shape[0]), rtol=0, atol=1e-5)


def test_a_prototype_far_from_all_images_is_not_lost():
    # exp(-400) is 0 in float32: its row could not be divided by its sum.
    scores = torch.zeros(4, 3)
    scores[:, 2] = -20
    torch.testing.assert_close(sinkhorn(scores, 0.05, 1), torch.full((4, 3), 1 / 3))


def test_codes_are_those_of_lightly():
    lightly = pytest.importorskip("lightly.loss.swav_loss", reason="lightly is not installed")
    scores = scores_of((24, 10), 1.0, 0)
    for iterations in (1, 3, 10):
        theirs = lightly.sinkhorn(scores.clone(), iterations, 0.05)
        torch.testing.assert_close(sinkhorn(scores, 0.05, iterations), theirs, rtol=1e-4, atol=1e-6)


def paper_loss(z: list[Tensor], c: Tensor, queue: Tensor | None, cfg: SwavConfig) -> Tensor:
    """Eq. 6, image by image; `queue` is [2, Q, dim] or nothing."""
    total, terms = torch.zeros((), dtype=torch.float64), 0
    for i in (0, 1):
        rows = z[i].detach() if queue is None else torch.cat([z[i].detach(), queue[i]])
        codes = paper_codes(rows @ c.detach().T, cfg.epsilon, cfg.sinkhorn_iterations)
        for v in range(len(z)):
            if v == i:
                continue
            terms += 1
            for image in range(len(z[v])):
                p = torch.exp(z[v][image] @ c.T / cfg.temperature)
                logs = torch.log(p / p.sum())
                q = torch.from_numpy(codes[image])
                total = total - (q * logs).sum() / len(z[v])
    return total / terms


@pytest.mark.parametrize("local", [0, 1, 3])
@pytest.mark.parametrize("queue", [0, 9])
def test_loss_and_gradients_are_those_of_the_paper(local: int, queue: int):
    objective = new(queue=queue, **FREE)
    for step in range(2):  # fills the queue
        objective(batch(step, local))
    objective.on_step_begin(1, 10)
    twin = doubled(objective)
    truth = paper_loss(
        embeddings(twin, batch(5, local)),
        twin.prototypes.weight,
        twin.queue if queue else None,
        objective.cfg,
    )
    truth.backward()
    loss = objective(batch(5, local))
    loss.value.backward()
    assert loss.value.item() == pytest.approx(truth.item(), rel=1e-5)
    assert_close_gradients(objective, twin)


@pytest.mark.parametrize("queue", [0, 12])
def test_the_loss_is_that_of_lightly(queue: int):
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    objective = new(queue=queue, **FREE)
    for step in range(2):
        objective(batch(step))
    objective.on_step_begin(1, 10)
    c, queued = objective.prototypes.weight.double(), objective.queue.double()
    scores = [z @ c.T for z in embeddings(doubled(objective), batch(5))]
    theirs = lightly.SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05)
    truth = theirs(scores[:2], scores[2:], [view @ c.T for view in queued] if queue else None)
    assert objective(batch(5)).value.item() == pytest.approx(truth.item(), rel=1e-5)


def test_the_head_is_that_of_lightly():
    heads = pytest.importorskip("lightly.models.modules.heads", reason="lightly is not installed")
    objective = new()
    theirs = heads.SwaVProjectionHead(objective.backbone.feature_dim, 16, 8)
    shapes = [list(p.shape) for p in theirs.parameters() if p.ndim > 1]
    assert [list(p.shape) for p in objective.head.parameters() if p.ndim > 1] == shapes
    assert [type(m) for m in objective.head] == [type(m) for m in theirs.layers]


@pytest.mark.parametrize("length", [4, 6, 20])
def test_the_queue_holds_the_newest_embeddings_of_each_global_view(length: int):
    objective = new(queue=length)
    rows: list[list[Tensor]] = [[], []]
    for step in range(5):
        z = embeddings(doubled(objective), batch(step))
        objective(batch(step))
        for view in (0, 1):
            rows[view] = [*z[view].detach(), *rows[view]][:length]
            filled = torch.stack(rows[view])
            mine = objective.queue[view].double()
            torch.testing.assert_close(mine[: len(filled)], filled, rtol=0, atol=1e-5)
            assert not mine[len(filled) :].any()


def losses(objective: Swav, epochs: list[float]) -> list[float]:
    found = []
    for step, epoch in enumerate(epochs):
        objective.on_step_begin(epoch, 100)
        found.append(objective(batch(step)).value.item())
    return found


def test_the_queue_is_used_from_its_epoch_on_and_never_before_it_is_full():
    epochs = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    without = losses(new(queue=0), epochs)
    # Three steps of six images fill eighteen places; the fourth step is the first to use them.
    early = losses(new(queue=18, queue_from_epoch=0), epochs)
    assert early[:3] == without[:3] and all(
        a != b for a, b in zip(early[3:], without[3:], strict=True)
    )
    late = losses(new(queue=18, queue_from_epoch=2), epochs)
    assert late[:4] == without[:4] and late[4:] == early[4:]
    never_full = losses(new(queue=37, queue_from_epoch=0), epochs)
    assert never_full == without


def test_queued_embeddings_are_scored_with_the_prototypes_of_now():
    objective = new(queue=6, **FREE)
    objective(batch(0))
    kept = objective.queue.clone()
    with torch.no_grad():
        objective.prototypes.weight.copy_(objective.prototypes.weight.roll(1, dims=1))
    objective.on_step_begin(1, 10)
    z = embeddings(doubled(objective), batch(1))
    truth = paper_loss(z, objective.prototypes.weight.double(), kept.double(), objective.cfg)
    assert objective(batch(1)).value.item() == pytest.approx(truth.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lars"])
def test_frozen_prototypes_stay_bit_for_bit_and_then_learn_on_the_sphere(kind: Any):
    objective = new(freeze_epochs=1.5)
    cfg = SqueezeConfig(optimizer=kind, lr=0.5, weight_decay=0.1, momentum=0.9)
    optimizer = make_optimizer(objective, cfg, decay_all=True)
    before = objective.prototypes.weight.clone()
    first = objective.head[0].weight.clone()
    train(objective, optimizer, [0.0, 0.5, 1.0, 1.4])
    assert torch.equal(objective.prototypes.weight, before)
    assert not torch.equal(objective.head[0].weight, first)
    for epoch in (1.5, 2.0):
        train(objective, optimizer, [epoch])
        assert not torch.allclose(objective.prototypes.weight, before, atol=1e-4)
        before = objective.prototypes.weight.clone()
        torch.testing.assert_close(before.norm(dim=1), torch.ones(10))


def test_prototypes_have_no_bias_and_unit_norm_from_the_start():
    objective = new()
    assert objective.prototypes.bias is None
    torch.testing.assert_close(objective.prototypes.weight.norm(dim=1), torch.ones(10))


def test_what_is_watched_is_the_unit_embedding_of_the_first_view():
    objective = new()
    z = embeddings(doubled(objective), batch())[0]
    embedding = objective(batch()).embedding
    assert not embedding.requires_grad
    torch.testing.assert_close(embedding.double(), z.detach(), rtol=0, atol=1e-5)


def test_a_state_dict_carries_all_that_the_next_steps_depend_on():
    def fresh() -> tuple[Swav, torch.optim.Optimizer]:
        objective = new(queue=12, queue_from_epoch=0, freeze_epochs=0.2)
        return objective, torch.optim.SGD(objective.parameters(), lr=0.1)

    assert_goes_on_from_its_state_dict(fresh)


def test_under_autocast_scores_codes_and_loss_are_computed_in_float32():
    objective = new(queue=6, **FREE)
    scores: list[Tensor] = []
    objective.prototypes.register_forward_hook(lambda module, inputs, out: scores.append(out))
    objective(batch(0))
    objective.on_step_begin(1, 10)
    exact = copy.deepcopy(objective)(batch(1)).value.item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(batch(1))
    assert loss.value.dtype == loss.embedding.dtype == objective.queue.dtype == torch.float32
    assert {out.dtype for out in scores} == {torch.float32}
    assert loss.value.item() != exact and loss.value.item() == pytest.approx(exact, rel=0.1)


def entropy(codes: Tensor) -> float:
    return torch.special.entr(codes).sum(dim=1).mean().item()


def test_codes_tell_images_apart_at_the_usual_epsilon_and_nothing_at_a_large_one():
    # Random unit vectors of the paper's size: cosines of about 1 / sqrt(128).
    torch.manual_seed(0)
    z, c = (nn.functional.normalize(torch.randn(n, 128), dim=1) for n in (256, 64))
    assert entropy(sinkhorn(z @ c.T, 0.05, 3)) < 0.75 * math.log(64)
    assert entropy(sinkhorn(z @ c.T, 5.0, 3)) > 0.999 * math.log(64)


class Same(nn.Module):
    """A collapsed backbone: all images have the same features."""

    feature_dim = 4

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), 4)


def test_collapsed_embeddings_get_codes_that_ask_for_nothing_and_no_spread():
    torch.manual_seed(0)
    objective = Swav(Same(), SwavConfig(dim=8, hidden=16, prototypes=10)).train()
    loss = objective(batch())
    # Sinkhorn spreads equal images evenly, so no prototype can win them all.
    assert loss.value.item() >= math.log(10)
    assert spread(loss.embedding).item() < 1e-3


def test_prototypes_that_are_all_equal_keep_the_loss_at_the_logarithm_of_their_number():
    objective = new()
    with torch.no_grad():
        objective.prototypes.weight.copy_(objective.prototypes.weight[:1].expand(10, -1).clone())
    assert objective(batch()).value.item() == pytest.approx(math.log(10), rel=1e-6)


@pytest.mark.slow
def test_the_loss_falls_in_sixty_steps_with_a_queue_and_local_crops():
    settings = SwavConfig(dim=16, hidden=64, prototypes=32, queue=128, queue_from_epoch=2)
    _, lines = sixty_steps(settings)
    assert lines[-1]["step"] == 60
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert lines[-1]["loss"] < 0.5 * math.log(32)
    assert lines[-1]["spread"] > 0.6 and lines[-1]["effective_rank"] > 5


def test_the_factory_builds_it_around_the_configured_backbone():
    settings = SwavConfig(dim=8, hidden=16, prototypes=10, queue=12)
    cfg = SqueezeConfig(arch="resnet8x2", batch=8, objective=settings)
    objective = create_objective(cfg, SIZE, num_classes=4, num_images=50)
    assert isinstance(objective, Swav) and objective.backbone.arch == "resnet8x2"
    assert objective.queue.shape == (2, 12, 8)
