"""What tells that a pre-training fails: a loss that is no number, embeddings that collapse."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from scdd.config.squeeze import SqueezeConfig
from scdd.distributed import gather, rank_and_size, total
from scdd.errors import RunError


class Monitor:
    """Sums over the steps of an epoch, kept on the device so that no step waits for them."""

    def __init__(
        self, cfg: SqueezeConfig, key: str, checkpoint: Path | None, device: torch.device
    ) -> None:
        self.cfg, self.key, self.checkpoint = cfg, key, checkpoint
        self.sums = torch.zeros(3, device=device)
        """Loss, spread, and how many steps they are of."""
        self.good = 0
        """Step at which the last checkpoint was saved."""
        self._embedding: Tensor | None = None
        self._spread = torch.ones((), device=device)

    def add(self, loss: Tensor, embedding: Tensor) -> None:
        """Take note of a step: its loss [] and its embeddings [B, D], on every process."""
        embedding = gather(embedding)  # Of the whole batch, as the spread of a few rows is smaller.
        mean_loss = total(loss.detach().float()) / rank_and_size()[1]
        self._embedding, self._spread = embedding, spread(embedding)
        self.sums += torch.stack([mean_loss, self._spread, torch.ones_like(mean_loss)])

    def check(self, step: int, trained: nn.Module) -> None:
        """Refuse to go on, or to save, if the loss or a weight is no number, or all is one point.

        Raises:
            RunError: saying what to change and where the last good state is.
        """
        loss, _, count = self.sums.tolist()
        key, lr, step_name = self.key, self.cfg.lr, self.key.partition(".")[0]
        then = f"and run again with --redo {step_name}"
        if self.good:
            then += (
                f", which moves aside, but keeps, the state of step {self.good} in "
                f"{self.checkpoint}"
            )
        finite = all(bool(p.isfinite().all()) for p in trained.parameters())
        if not finite or not math.isfinite(loss):
            what = "a weight is no number" if math.isfinite(loss) else f"the loss is {loss / count}"
            raise RunError(f"{key}: {what} at step {step}; lower {key}.lr (now {lr}) {then}")
        # Of this step: the epoch's mean would let collapsed states be saved for a while.
        now = self._spread.item()
        if now < self.cfg.collapse_below:
            raise RunError(
                f"{key}: the embeddings collapse to one point (spread {now:.3f} "
                f"at step {step}, below {key}.collapse_below = {self.cfg.collapse_below}, which 0 "
                f"switches off); lower {key}.lr or change {key}.objective, {then}"
            )

    def close(self) -> dict[str, float]:
        """Means of the epoch for the log; the next one starts from zero."""
        loss, mean_spread, count = self.sums.tolist()
        assert self._embedding is not None
        rank = effective_rank(self._embedding)
        self.sums.zero_()
        return {"loss": loss / count, "spread": mean_spread / count, "effective_rank": rank}


def spread(embedding: Tensor) -> Tensor:
    """Mean over the axes of the standard deviation of unit vectors [B, D], times sqrt(D).

    0 where all are one point, 1 where they are uniform on the sphere (section 4.2 of
    arXiv:2011.10566).
    """
    return embedding.float().std(dim=0, unbiased=False).mean() * embedding.shape[1] ** 0.5


def effective_rank(embedding: Tensor) -> float:
    """exp of the entropy of the normalised singular values of [B, D] (Roy and Vetterli, 2007)."""
    values = torch.linalg.svdvals(embedding.float())
    share = values / values.sum()
    return torch.special.entr(share).sum().exp().item()
