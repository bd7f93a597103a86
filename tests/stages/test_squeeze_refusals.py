"""Pre-training that cannot start, or cannot go on: one sentence, the last good state kept."""

import re
from pathlib import Path
from typing import Any

import pytest

from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.objectives import MocoV2Config, SwavConfig
from scdd.config.squeeze import SqueezeConfig
from scdd.datasets import ResidentSource
from scdd.errors import DataError, RunError
from tests.stages.small_squeeze import MakeSource, run, settings


def test_fewer_images_than_a_batch_are_refused(make_source: MakeSource):
    with pytest.raises(DataError) as caught:
        run(settings(batch=9), make_source(8), make_source(8, seed=1))
    assert str(caught.value) == (
        "squeeze.batch is 9, but the training set holds only 8 images; choose a batch of at most 8"
    )


@pytest.mark.parametrize(
    "objective", [MocoV2Config(queue=35), SwavConfig(queue=35, queue_from_epoch=0)]
)
def test_a_queue_longer_than_the_training_set_is_refused(objective: Any, make_source: MakeSource):
    with pytest.raises(DataError) as caught:
        run(settings(objective=objective), make_source(34), make_source(8, seed=1))
    assert str(caught.value) == (
        "squeeze.objective.queue is 35, but the training set holds only 34 images, so that it "
        "would hold some twice; choose a shorter queue"
    )


def refusal(
    cfg: SqueezeConfig, train: ResidentSource, checkpoint: Checkpoint = NO_CHECKPOINT
) -> str:
    """The sentence that ends a run, without the digits of a spread that hang on the processor."""
    with pytest.raises(RunError) as caught:
        run(cfg, train, train, checkpoint=checkpoint)
    return re.sub(r"(?<=spread 0\.0)[01]\d", "..", str(caught.value))


# With a warm-up the first step has a rate of 0, so it leaves a good state.
NO_NUMBER = {"warmup_epochs": 1, "objective": MocoV2Config(dim=8, queue=32, temperature=1e-3)}
# Weights go, biases stay: every image ends at the bias of the head.
COLLAPSE = {"weight_decay": 10.0, "decay": "matrices"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            NO_NUMBER | {"lr": 1e30},
            "squeeze: the loss is nan at step {step}; lower squeeze.lr (now 1e+30) and run again "
            "with --redo squeeze",
        ),
        (
            NO_NUMBER | {"lr": 3e38},
            "squeeze: a weight is no number at step {step}; lower squeeze.lr (now 3e+38) and run "
            "again with --redo squeeze",
        ),
        (
            COLLAPSE,
            "squeeze: the embeddings collapse to one point (spread 0.0.. at step {step}, below "
            "squeeze.collapse_below = 0.02, which 0 switches off); lower squeeze.lr or "
            "change squeeze.objective, and run again with --redo squeeze",
        ),
    ],
    ids=["loss", "weight", "collapse"],
)
def test_a_run_that_diverges_ends_in_one_sentence_and_keeps_the_last_good_state(
    changes: dict[str, Any], sentence: str, make_source: MakeSource, tmp_path: Path
):
    cfg, train, file = settings(**changes), make_source(34), tmp_path / "c.pt"
    checkpoint = Checkpoint(file, 0)
    found = refusal(cfg, train, checkpoint)
    state = checkpoint.load()
    assert state is not None
    good = state["step"]
    kept = f", which moves aside, but keeps, the state of step {good} in {file}"
    assert found == sentence.format(step=good + 1) + kept
    assert all(bool(tensor.isfinite().all()) for tensor in state["objective"].values())
    assert refusal(cfg, train, checkpoint) == found, "it goes on from there, to the same end"
    assert "keeps" not in refusal(cfg, train)


def test_without_a_checkpoint_a_collapse_ends_the_run_with_its_epoch_and_may_be_allowed(
    make_source: MakeSource,
):
    train = make_source(34)
    assert refusal(settings(**COLLAPSE), train).startswith(
        "squeeze: the embeddings collapse to one point (spread 0.0.. at step 8, below "
    )
    _, lines = run(settings(**COLLAPSE, collapse_below=0.0), train, train)
    assert lines[-1]["epoch"] == 3
