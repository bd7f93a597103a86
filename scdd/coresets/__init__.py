"""Real images that stand for many: which of a pool to choose, the best first."""

from scdd.coresets.forgetting import most_forgotten
from scdd.coresets.herding import herding
from scdd.coresets.k_center import k_center

__all__ = ["herding", "k_center", "most_forgotten"]
