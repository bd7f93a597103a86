"""The protocol variants: what is pruned, by which order, and who teaches what is left.

Two more rows go with each of them as controls, and a ratio of 0: `random` removes as many channels
of every layer, but any, and `scratch` gives the widths found new weights and all the steps.
"""

from dataclasses import dataclass
from typing import Literal

Criterion = Literal["slimming", "magnitude"]

RANDOM, SCRATCH = "random", "scratch"
CONTROLS = (RANDOM, SCRATCH)


@dataclass(frozen=True)
class Variant:
    """One protocol."""

    from_checkpoint: bool
    """Whether a trained network of the user is pruned, which then teaches the pruned one; else a
    new one, and the labels of the file teach."""
    first: tuple[str, ...] | None
    """Training before pruning, where `PosttrainConfig` differs; None: there is none."""
    criterion: Criterion
    """How channels are ranked, where the network lets one choose."""


SGD = (
    "optimizer=sgd",
    "momentum=0.9",
    "weight_decay=0.0005",
    "decay=matrices",
    "loss=kl",
    "scale_loss=true",
    "hard_weight=0",
    "lr_schedule=cosine",
    "stretch=1.0",
    "ema=0",
    "schedule=step",
    "warmup_epochs=0",
    "epochs=200",
)
"""Adam would divide the L1 term by its own size; BatchNorm scales have no other decay."""
FIRST = (*SGD, "lr=0.05")
FINE_TUNING = (*SGD, "lr=0.01")
WITHOUT_BATCHNORM = ("optimizer=adamw", "lr=0.0005", "weight_decay=0.01", "warmup_epochs=5")
"""Takes the place of SGD where no BatchNorm keeps a large rate in bounds."""

VARIANTS = {
    "synth": Variant(from_checkpoint=False, first=FIRST, criterion="slimming"),
    "checkpoint": Variant(from_checkpoint=True, first=FIRST, criterion="slimming"),
    "oneshot": Variant(from_checkpoint=True, first=None, criterion="magnitude"),
}
