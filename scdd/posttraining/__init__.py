"""What training a student is made of: losses, rates, and the step, on one process or many."""

from scdd.posttraining.losses import Labels, hard_loss, soft_loss, student_loss
from scdd.posttraining.schedule import learning_rate
from scdd.posttraining.step import Step, step_batches, steps_per_epoch, student_step

__all__ = [
    "Labels",
    "Step",
    "hard_loss",
    "learning_rate",
    "soft_loss",
    "step_batches",
    "steps_per_epoch",
    "student_loss",
    "student_step",
]
