"""Forgetting events (Toneva et al., arXiv:1812.05159): hard images first."""

import torch
from torch import Tensor


def most_forgotten(forgetting: Tensor, learnt: Tensor, count: int, ties: torch.Generator) -> Tensor:
    """Choose the images that a training forgot most often.

    What was never learnt counts as forgotten without end (section 3 of the paper).

    Args:
        forgetting: int [N], events of each image.
        learnt: bool [N], whether it was ever classified right.
        count: at most N.
        ties: draws the order of images that were forgotten equally often.

    Returns:
        int64 [count], on the CPU.
    """
    events = torch.where(learnt, forgetting.double(), torch.inf).cpu()
    shuffled = torch.randperm(len(events), generator=ties)
    return shuffled[events[shuffled].argsort(descending=True, stable=True)][:count]
