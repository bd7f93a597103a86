"""Every objective at toy size and the step that trains it; a new objective takes a line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.config.objectives import (
    BarlowTwinsConfig,
    DinoConfig,
    MocoV2Config,
    MocoV3Config,
    ObjectiveConfig,
    SupervisedConfig,
    SwavConfig,
)
from scdd.config.squeeze import SqueezeConfig
from scdd.config.views import ViewConfig
from scdd.objectives import Batch, Loss, Objective, create_objective

SIZE, CLASSES, IMAGES = 16, 4, 16


@dataclass(frozen=True)
class Case:
    """An objective and the sides of its views in pixels."""

    objective: ObjectiveConfig
    sizes: tuple[int, ...] = (SIZE, SIZE)
    stays_apart: str = "nothing"
    """Pattern of the buffers that differ between processes, as the objective's docstring says."""

    def new(self) -> Objective:
        """In train mode, always with the same weights."""
        views = (ViewConfig(count=len(self.sizes)),)
        cfg = SqueezeConfig(arch="resnet8", batch=8, objective=self.objective, views=views)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return create_objective(cfg, SIZE, CLASSES, IMAGES).train()


CASES = {
    "moco_v2": Case(MocoV2Config(dim=16, queue=48)),
    "moco_v2_split": Case(
        MocoV2Config(dim=16, queue=48, symmetric=False, mlp=False, key_splits=2),
        stays_apart=r"key_encoder\..*(running_mean|running_var|num_batches_tracked)",
    ),
    "moco_v3": Case(MocoV3Config(dim=16, hidden=32)),
    "barlow_twins": Case(BarlowTwinsConfig(dim=16, hidden=32, scale=0.1)),
    "swav": Case(SwavConfig(dim=16, hidden=32, prototypes=12), sizes=(16, 16, 8, 8)),
    "dino": Case(DinoConfig(dim=24, hidden=32, bottleneck=16, head_bn=True), sizes=(16, 16, 8, 8)),
    "supervised": Case(SupervisedConfig(label_smoothing=0.1), sizes=(SIZE,)),
}


def images(count: int) -> Tensor:
    """Float [count, 3, SIZE, SIZE]: patterns that can be told apart, of a class by row."""
    draw = torch.Generator().manual_seed(3)
    coarse = torch.randn(count, 3, 4, 4, generator=draw)
    coarse += 2 * torch.randn(CLASSES, 3, 4, 4, generator=draw)[torch.arange(count) % CLASSES]
    return F.interpolate(coarse, size=SIZE, mode="bilinear")


def batch_of(rows: Tensor, pictures: Tensor, sizes: Sequence[int], step: int) -> Batch:
    """Noisy views of `pictures[rows]`; the smaller ones are corners."""
    draw = torch.Generator().manual_seed(1000 + step)
    views = [
        pictures[rows] + 0.3 * torch.randn(pictures[rows].shape, generator=draw) for _ in sizes
    ]
    return Batch(
        views=tuple(view[..., :size, :size] for view, size in zip(views, sizes, strict=True)),
        labels=rows % CLASSES,
        rows=rows,
        generator=torch.Generator().manual_seed(step),
    )


def take_step(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    epoch: float,
    epochs: int,
    loss_of: Callable[[Batch], Loss] | None = None,
) -> Loss:
    """One step of training, as squeeze takes it."""
    objective.on_step_begin(epoch, epochs)
    loss = (loss_of or objective)(batch)
    optimizer.zero_grad()
    loss.value.backward()
    objective.on_backward_end()
    optimizer.step()
    objective.on_step_end()
    return loss


def pair(view1: Tensor, view2: Tensor, seed: int = 7) -> Batch:
    """Two views of images without labels worth looking at."""
    rows = torch.arange(len(view1))
    generator = torch.Generator().manual_seed(seed)
    return Batch((view1, view2), torch.zeros_like(rows), rows, generator)


def unrelated(count: int, size: int, step: int = 0) -> tuple[Tensor, Tensor]:
    """Two views that have nothing in common, float [count, 3, size, size] each."""
    draw = torch.Generator().manual_seed(100 + step)
    view1, view2 = torch.randn(2, count, 3, size, size, generator=draw)
    return view1, view2


class Flat(nn.Module):
    """A backbone that returns the pixels themselves."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def outputs_of(module: nn.Module) -> list[Tensor]:
    """A list to which every later forward pass of `module` adds its output."""
    found: list[Tensor] = []
    module.register_forward_hook(lambda module, args, out: found.append(out.detach()))
    return found


def assert_equal_but_not_shared(one: nn.Module, other: nn.Module) -> None:
    """Weights and buffers of both are equal, and no tensor of one is a tensor of the other."""
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name])
        assert tensor.data_ptr() != theirs[name].data_ptr()


def layers(head: nn.Module) -> list[tuple[str, ...]]:
    """Kind and widths of every layer, and what it learns beside a weight, in words."""
    found: list[tuple[str, ...]] = []
    for layer in head.children():
        if isinstance(layer, nn.Linear):
            bias = "no bias" if layer.bias is None else "bias"
            found.append(("linear", f"{layer.in_features}-{layer.out_features}", bias))
        elif isinstance(layer, nn.BatchNorm1d):
            affine = "affine" if layer.affine else "not affine"
            found.append(("batchnorm", f"{layer.num_features}", affine))
        else:
            found.append((type(layer).__name__.lower(),))
    return found
