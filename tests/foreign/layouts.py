"""Files as other projects write them, made from the weights of a torchvision ResNet.

The names are those that the projects use; what stands beside the backbone (key encoders, heads,
queues, optimisers) is filled with constants, so that taking it instead shows.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

State = dict[str, Tensor]

FEATURES = 512


def small_resnet18(padding: int = 1) -> nn.Module:
    """ResNet-18 for small images, as most CIFAR code has it: 3x3 stem, stride 1, no max-pool."""
    net = resnet18()
    net.conv1 = nn.Conv2d(3, 64, 3, 1, padding, bias=False)
    net.maxpool = nn.Identity()
    return net


def trained(net: nn.Module) -> nn.Module:
    """Weights and statistics that no fresh net has."""
    draw = torch.Generator().manual_seed(7)
    for name, tensor in net.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(generator=draw)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=draw)
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(1234)
        elif tensor.dim() == 1:
            tensor.add_(torch.empty_like(tensor).normal_(std=0.2, generator=draw))
    return net.eval()


def backbone(net: nn.Module) -> State:
    """Weights without the classifier."""
    return {k: v for k, v in net.state_dict().items() if not k.startswith("fc.")}


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def other(state: State) -> State:
    """Another net of these shapes; a constant takes no room in a file."""
    return {name: filled(*tensor.shape) for name, tensor in state.items()}


def filled(*shape: int) -> Tensor:
    return torch.full((1,) * len(shape), 0.5).expand(shape)


def linear(name: str, outputs: int, inputs: int = FEATURES) -> State:
    return {f"{name}.weight": filled(outputs, inputs), f"{name}.bias": filled(outputs)}


def mlp(name: str, *numbers: int) -> State:
    return {k: v for n in numbers for k, v in linear(f"{name}.{n}", FEATURES).items()}


def batch_norm(name: str, affine: bool = True) -> State:
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{n}": filled(2048) for n in (names if affine else names[2:])}


OPTIMIZER = {"state": {0: {"momentum_buffer": filled(64, 3, 7, 7)}}, "param_groups": [{"lr": 0.1}]}


def moco_v1(b: State, head: State) -> Any:
    q, k = under("module.encoder_q.", b), under("module.encoder_k.", other(b))
    heads = {**linear("module.encoder_q.fc", 128), **linear("module.encoder_k.fc", 128)}
    return {
        "epoch": 200,
        "arch": "resnet50",
        "state_dict": {**q, **k, **heads, **queue("module.")},
        "optimizer": OPTIMIZER,
    }


def moco_v2(b: State, head: State) -> Any:
    q, k = under("module.encoder_q.", b), under("module.encoder_k.", other(b))
    heads = {**mlp("module.encoder_q.fc", 0, 2), **mlp("module.encoder_k.fc", 0, 2)}
    state = {**k, **q, **heads, **queue("module.")}
    return {"epoch": 800, "arch": "resnet50", "state_dict": state, "optimizer": OPTIMIZER}


def queue(prefix: str) -> State:
    return {f"{prefix}queue": filled(128, 65536), f"{prefix}queue_ptr": torch.zeros(1).long()}


def moco_v3(b: State, head: State) -> Any:
    base, momentum = "module.base_encoder.", "module.momentum_encoder."
    state = {**under(momentum, other(b)), **under(base, b)}
    for prefix in (base, momentum):
        state |= {f"{prefix}fc.0.weight": filled(4096, FEATURES), **batch_norm(f"{prefix}fc.1")}
        state |= {f"{prefix}fc.3.weight": filled(256, 4096), **batch_norm(f"{prefix}fc.4", False)}
    state |= {"module.predictor.0.weight": filled(4096, 256), **batch_norm("module.predictor.1")}
    return {"epoch": 300, "state_dict": state, "optimizer": OPTIMIZER, "scaler": {"scale": 1.0}}


def linear_evaluation(b: State, head: State) -> Any:
    """MoCo v3's linear files, and any net of PyTorch's ImageNet example."""
    state = under("module.", {**b, **head})
    return {"epoch": 90, "state_dict": state, "best_acc1": torch.tensor(72.8)}


def swav(b: State, head: State) -> Any:
    state = {**b, **linear("projection_head.0", 2048), **batch_norm("projection_head.1")}
    state |= {**linear("projection_head.3", 128, 2048), "prototypes.weight": filled(3000, 128)}
    return under("module.", state)


def swav_w5(b: State, head: State) -> Any:
    state = {
        **b,
        **linear("projection_head.0", 2048),
        "prototypes.prototypes0.weight": filled(9, 9),
    }
    return {"epoch": 400, "state_dict": under("module.", state), "optimizer": OPTIMIZER}


def dino(b: State, head: State) -> Any:
    return b


def dino_full(b: State, head: State) -> Any:
    heads = {**mlp("module.head.mlp", 0, 2, 4)}
    heads |= {"module.head.last_layer.weight_g": filled(60000, 1)}
    heads |= {"module.head.last_layer.weight_v": filled(60000, 256)}
    return {
        "student": {**under("module.backbone.", other(b)), **heads},
        "teacher": {**under("module.backbone.", b), **heads},
        "optimizer": OPTIMIZER,
        "epoch": 800,
        "args": argparse.Namespace(arch="resnet50", lr=0.3, seed=0),
        "dino_loss": {"center": filled(1, 60000)},
        "fp16_scaler": None,
    }


def barlow_twins(b: State, head: State) -> Any:
    state = {**under("module.backbone.", b), **batch_norm("module.bn", affine=False)}
    state |= {"module.projector.0.weight": filled(8192, FEATURES)}
    state |= batch_norm("module.projector.1")
    return {"epoch": 1000, "model": state, "optimizer": OPTIMIZER}


def solo_learn(b: State, head: State) -> Any:
    state = {**under("momentum_backbone.", other(b)), **under("backbone.", b), **mlp("head", 0, 2)}
    state |= {f"classifier.{name.removeprefix('fc.')}": tensor for name, tensor in head.items()}
    state |= {
        **mlp("projector", 0, 2),
        **mlp("momentum_projector", 0, 2),
        **linear("predictor.0", 9),
    }
    state |= {"queue": filled(2, 256, 32768), "dino_loss_func.center": filled(1, 4096)}
    return {"epoch": 999, "state_dict": state, "hyper_parameters": {"lr": 0.3, "method": "mocov2"}}


def solo_learn_old(b: State, head: State) -> Any:
    state = {**under("momentum_encoder.", other(b)), **under("encoder.", b), **mlp("projector", 0)}
    return {"state_dict": {**state, "queue": filled(128, 4096)}, "callbacks": {}}


def lightly(b: State, head: State) -> Any:
    state = {**under("key_backbone.", other(b)), **under("backbone.", b)}
    state |= {**mlp("projection_head.layers", 0, 2), "criterion.memory_bank.bank": filled(128, 99)}
    online = "online_classifier.classification_head."
    state |= {online + name.removeprefix("fc."): tensor for name, tensor in head.items()}
    return {"epoch": 99, "state_dict": state, "pytorch-lightning_version": "2.0"}


def lightly_dino(b: State, head: State) -> Any:
    state = {**under("student_backbone.", other(b)), **under("backbone.", b)}
    return {"state_dict": {**state, **mlp("projection_head.layers", 0, 3, 6)}}


def children(b: State, first_stage: int) -> State:
    """As in a Sequential of the children of the net."""
    numbers = {"conv1": 0, "bn1": 1, **{f"layer{n}": first_stage + n - 1 for n in range(1, 5)}}
    return {f"{numbers[k.split('.')[0]]}.{k.partition('.')[2]}": tensor for k, tensor in b.items()}


def lightly_children(b: State, head: State) -> Any:
    state = under("backbone.", children(b, 4))
    state |= {
        **under("backbone_momentum.", other(children(b, 4))),
        **mlp("projection_head.layers", 0),
    }
    return {"state_dict": state}


def moco_notebook(b: State, head: State) -> Any:
    state = {
        **under("encoder_k.net.", other(children(b, 3))),
        **under("encoder_q.net.", children(b, 3)),
    }
    state |= {**linear("encoder_q.net.9", 128), **linear("encoder_k.net.9", 128), **queue("")}
    return {"epoch": 200, "state_dict": state, "optimizer": OPTIMIZER}


def flat(b: State, head: State) -> Any:
    """torchvision and timm."""
    return {**b, **head}


def compiled(b: State, head: State) -> Any:
    """A classifier saved behind torch.compile and DistributedDataParallel."""
    return {"model": under("_orig_mod.module.", {**b, **head}), "step": 3}


Write = Callable[[State, State], Any]

LARGE_STEM: dict[str, Write] = {
    "MoCo v1": moco_v1,
    "MoCo v2": moco_v2,
    "MoCo v3": moco_v3,
    "SwAV": swav,
    "DINO, full": dino_full,
    "Barlow Twins, full": barlow_twins,
    "solo-learn": solo_learn,
    "solo-learn, old": solo_learn_old,
    "lightly": lightly,
    "torchvision or timm": flat,
}
"""One writer per layout, by the name under which a report calls it."""

VARIANTS: dict[Write, str] = {
    swav_w5: "SwAV",
    dino: "torchvision or timm",
    linear_evaluation: "torchvision or timm",
    lightly_dino: "lightly",
    compiled: "torchvision or timm",
}
"""Further writers, and the name under which a report calls what they write."""

WITH_HEAD = {flat, linear_evaluation, solo_learn, lightly, compiled}
"""Those whose file holds a linear classifier."""


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path
