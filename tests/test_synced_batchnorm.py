"""BatchNorm over two real processes against torch's own on the whole batch in one."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from scdd.distributed import own_rows, rank_and_size
from scdd.errors import ConfigError
from scdd.synced_batchnorm import SyncedBatchNorm, synced
from tests.two_processes import TwoProcesses

ROWS = 6
"""Of each process."""
SHAPES = {"1d": (2 * ROWS, 3), "sequence": (2 * ROWS, 3, 5), "2d": (2 * ROWS, 3, 4, 2)}
DTYPES = {"float": torch.float32, "double": torch.float64}
CASES = [
    ("1d", True, "float"),
    ("1d", False, "double"),
    ("sequence", True, "double"),
    ("2d", True, "float"),
    ("2d", True, "double"),
    ("2d", False, "float"),
]


def plain(kind: str, affine: bool) -> nn.Module:
    """BatchNorm with a past, in train mode."""
    layer = nn.BatchNorm2d if kind == "2d" else nn.BatchNorm1d
    module = layer(3, eps=1e-3, momentum=0.3, affine=affine)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(0.5 + torch.rand(3, generator=draw))
    return module


def batch(kind: str, dtype: str) -> Tensor:
    """Rows of the second process have another mean and another scale than those of the first."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(SHAPES[kind], generator=draw, dtype=torch.float64)
    x[ROWS:] = 3 * x[ROWS:] + 2
    x = x.to(DTYPES[dtype])
    return x.contiguous(memory_format=torch.channels_last) if kind == "2d" else x


def steps(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Two steps in train mode and one in eval mode, with the gradients of all."""
    found = {}
    for name in ("first", "second", "eval"):
        module.train(name != "eval")
        module.zero_grad()
        x = x.detach().requires_grad_()
        out = module(x)
        out.sin().sum().backward()  # not linear, or the gradient of the input would be 0
        found |= {name: out.detach(), f"{name} input": x.grad}
        found |= {f"{name} {key}": p.grad for key, p in module.named_parameters()}
        x = 2 * x + out
    return found | module.state_dict()


def share_of_steps(kind: str, affine: bool, dtype: str) -> dict[str, Tensor]:
    module = synced(plain(kind, affine)).to(DTYPES[dtype])
    assert isinstance(module, SyncedBatchNorm)
    return steps(module, batch(kind, dtype)[own_rows(ROWS)])


@pytest.mark.parametrize(("kind", "affine", "dtype"), CASES)
def test_two_processes_normalise_as_one_does_the_whole_batch(
    kind: str, affine: bool, dtype: str, two_processes: TwoProcesses
):
    # The truth is in double, to which floats come as near as floats can.
    wanted = steps(plain(kind, affine).double(), batch(kind, dtype).double())
    shares = two_processes(share_of_steps, kind, affine, dtype)
    precision = (
        {"rtol": 1e-10, "atol": 1e-10} if dtype == "double" else {"rtol": 1e-4, "atol": 2e-5}
    )
    assert shares[0].keys() == shares[1].keys() == wanted.keys()
    for name, truth in wanted.items():
        mine, other = (share[name] for share in shares)
        if len(truth.shape) and len(truth) == 2 * ROWS:
            found = torch.cat([mine, other])
        elif name.endswith(("weight", "bias")) and " " in name:  # gradients of parameters
            found = mine + other
        else:
            assert torch.equal(mine, other), name
            found = mine
        torch.testing.assert_close(found.double(), truth.double(), **precision, msg=name)


def share_of_uneven_steps(rows_of_first: int) -> dict[str, Tensor]:
    rows = slice(rows_of_first) if rank_and_size()[0] == 0 else slice(rows_of_first, None)
    return steps(synced(plain("2d", True)).double(), batch("2d", "double")[rows])


@pytest.mark.parametrize("rows_of_first", [11, 5, 0])
def test_processes_may_bring_different_numbers_of_rows_or_none(
    rows_of_first: int, two_processes: TwoProcesses
):
    wanted = steps(plain("2d", True).double(), batch("2d", "double"))
    mine, other = two_processes(share_of_uneven_steps, rows_of_first)
    for name, truth in wanted.items():
        found = other[name]
        if len(truth.shape) and len(truth) == 2 * ROWS:
            found = torch.cat([mine[name], found])
        elif name.endswith(("weight", "bias")) and " " in name:  # gradients of parameters
            found = mine[name] + found
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize(("kind", "affine", "dtype"), CASES)
def test_alone_it_is_batchnorm(kind: str, affine: bool, dtype: str):
    module = plain(kind, affine).to(DTYPES[dtype])
    twin = SyncedBatchNorm(3, module.eps, module.momentum, affine).to(DTYPES[dtype])
    twin.load_state_dict(module.state_dict())
    x = batch(kind, dtype)
    wanted, found = steps(module, x), steps(twin, x)
    for name, truth in wanted.items():
        torch.testing.assert_close(found[name], truth, rtol=1e-4, atol=2e-5, msg=name)


def half() -> Tensor:
    return synced(plain("2d", True))(batch("2d", "float")[own_rows(ROWS)].bfloat16())


def test_statistics_of_half_precision_are_taken_in_floats(two_processes: TwoProcesses):
    rounded = batch("2d", "float").bfloat16()
    wanted = plain("2d", True)(rounded.float())
    found = torch.cat(two_processes(half))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted.bfloat16(), rtol=2**-7, atol=1e-6)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm1d(3, affine=False)
        self.body = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.BatchNorm1d(3)))
        self.frozen = plain("2d", True).requires_grad_(False)
        self.still = nn.BatchNorm2d(2).eval()


def what_synced_keeps() -> dict[str, bool]:
    before = Net()
    module = copy.deepcopy(before)
    optimised = dict(module.named_parameters())
    after = synced(module)
    names = [*before.state_dict()]
    pairs = zip(before.modules(), after.modules(), strict=True)
    norms = [(old, new) for old, new in pairs if "BatchNorm" in type(old).__name__]
    return {
        "all are synced": all(isinstance(new, SyncedBatchNorm) for _, new in norms),
        "names and order": [*after.state_dict()] == names,
        "values": all(
            torch.equal(tensor, after.state_dict()[name])
            for name, tensor in before.state_dict().items()
        ),
        "parameters that an optimiser may hold": all(
            optimised[name] is parameter for name, parameter in after.named_parameters()
        ),
        "what is frozen": not any(p.requires_grad for p in after.frozen.parameters())
        and all(p.requires_grad for p in after.body.parameters()),
        "mode": all(old.training == new.training for old, new in norms),
        "settings": all(
            (old.eps, old.momentum, old.affine) == (new.eps, new.momentum, new.affine)
            for old, new in norms
        ),
        "a second time": synced(after) is after
        and sum(isinstance(m, SyncedBatchNorm) for m in after.modules()) == len(norms) == 4,
    }


def test_only_the_batchnorms_of_a_network_are_changed_and_nothing_else(
    two_processes: TwoProcesses,
):
    for found in two_processes(what_synced_keeps):
        assert found and all(found.values()), found


def refusal_of_activations_inside() -> str:
    try:
        synced(nn.Sequential(BatchNormAct2d(3)))
    except ConfigError as error:
        return str(error)
    return ""


def test_layers_that_also_activate_are_refused_over_two_processes(two_processes: TwoProcesses):
    for said in two_processes(refusal_of_activations_inside):
        assert "BatchNormAct2d" in said and "use one" in said
    net = nn.Sequential(BatchNormAct2d(3))
    assert type(synced(net)[0]) is BatchNormAct2d


def test_where_there_is_one_process_a_network_stays_as_it_is():
    net = Net()
    parts = list(net.modules())
    assert synced(net) is net and all(a is b for a, b in zip(parts, net.modules(), strict=True))
