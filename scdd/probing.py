"""What features are worth: a linear classifier and nearest neighbours on them."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.augment import normalise
from scdd.datasets.sources import ImageSource
from scdd.training import evaluating


class Standardisation(NamedTuple):
    """How features are brought to zero mean and unit variance; both float64 [D]."""

    centre: Tensor
    spread: Tensor

    def of(self, features: Tensor) -> Tensor:
        """Standardised features, float64 [N, D]."""
        return (features.double() - self.centre) / self.spread

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Turn a classifier of standardised features into the same one of raw ones, in float32."""
        folded = weight.double() / self.spread
        return folded.float(), (bias.double() - folded @ self.centre).float()


@torch.no_grad()
def features(
    backbone: nn.Module,
    source: ImageSource,
    device: torch.device,
    batch: int = 500,
    rows: Tensor | None = None,
) -> Tensor:
    """Eval-mode features [N, D] of the whole images of a source, or of some, on `device`."""
    parts = []
    with evaluating(backbone):
        for index in (torch.arange(len(source)) if rows is None else rows).split(batch):
            x = source.read(index).to(device).float() / 255
            parts.append(backbone(normalise(x, source.mean, source.std)).float())
    return torch.cat(parts)


def measure_standardisation(blocks: Callable[[], Iterable[Tensor]]) -> Standardisation:
    """Mean and standard deviation (biased) of features that come in blocks [n, D], gone over twice.

    A feature that never changes is not scaled: where it does change later, by a crop for instance,
    dividing by next to nothing would drown the others.
    """
    sums = [(len(block), block.double().sum(dim=0)) for block in blocks()]
    count = sum(length for length, _ in sums)
    centre = torch.stack([total for _, total in sums]).sum(dim=0) / count
    squares = [(block.double() - centre).square().sum(dim=0) for block in blocks()]
    spread = (torch.stack(squares).sum(dim=0) / count).sqrt()
    return Standardisation(centre, torch.where(spread < 1e-6, 1.0, spread))


def fit_linear(
    features: Tensor, labels: Tensor, num_classes: int, l2: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """Fit multinomial logistic regression with L-BFGS; return (weight [C, D], bias [C]).

    Minimises mean cross-entropy + l2/2 * ||W||^2 on standardised features; the standardisation is
    folded into the result, which so takes raw features.

    Args:
        features: [N, D].
        labels: int64 [N].
        num_classes: C.
        l2: penalty on the weights of standardised features; the bias is free.
        iterations: of L-BFGS at most.
    """
    x = features.double()
    centre, spread = x.mean(dim=0), x.std(dim=0, unbiased=False).clamp(min=1e-6)
    standardisation = Standardisation(centre, spread)
    x = standardisation.of(x)
    weight = torch.zeros(num_classes, x.shape[1], dtype=x.dtype, device=x.device)
    bias = torch.zeros(num_classes, dtype=x.dtype, device=x.device)
    weight.requires_grad_(True)
    bias.requires_grad_(True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-6,
    )

    def objective() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, labels) + 0.5 * l2 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(objective)
    return standardisation.fold(weight.detach(), bias.detach())


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    k: int,
    temperature: float,
) -> float:
    """Per cent of test features [M, D] classified right by weighted cosine neighbours.

    The k nearest training features [N, D] vote with exp(cosine / temperature) (arXiv:1805.01978).
    """
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    classes = int(train_labels.max()) + 1
    right = 0
    for block, truth in zip(test.split(1000), test_labels.split(1000), strict=True):
        similarity, index = (block @ train.T).topk(min(k, len(train)), dim=1)
        votes = torch.zeros(len(block), classes, device=block.device)
        votes.scatter_add_(
            1, train_labels[index], ((similarity - similarity[:, :1]) / temperature).exp()
        )
        right += int((votes.argmax(dim=1) == truth).sum())
    return 100 * right / len(test)
