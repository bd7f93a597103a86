"""Where a file keeps its backbone and what it calls each weight, recognised by the keys alone."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scdd.foreign.read import State

Shapes = Mapping[str, torch.Size]
"""By the names of our nets, which for a ResNet are torchvision's."""


@dataclass(frozen=True)
class Naming:
    """What a file calls the weights of a net."""

    note: str = ""
    """For people; empty for the names of torchvision."""
    children: Mapping[str, str] = field(default_factory=dict)
    """Names of the outermost modules, where they differ."""
    shortcut: str = "downsample"
    """Name of the shortcut inside a block."""
    unwrapped: bool = False
    """Whether the file lacks the child `backbone` that some of our nets have."""
    without: tuple[str, ...] = ()
    """Parts of the stem for which a Sequential has no place: `max-pool`, `ReLU`."""

    def __call__(self, key: str) -> str:
        if self.unwrapped:
            return key.removeprefix("backbone.")
        first, dot, rest = key.partition(".")
        rest = rest.replace("downsample.", f"{self.shortcut}.")
        return self.children.get(first, first) + dot + rest


def _sequential(
    first_stage: int, note: str, shortcut: str, without: tuple[str, ...] = ()
) -> Naming:
    stages = {f"layer{n}": str(first_stage + n - 1) for n in range(1, 5)}
    return Naming(note, {"conv1": "0", "bn1": "1", **stages}, shortcut, without=without)


_CHILDREN = "a Sequential of the children of torchvision's net"
_LIGHTLY_CHILDREN = "a Sequential of the children of lightly's CIFAR net"
NAMINGS = (
    Naming(),
    Naming("shortcuts called 'shortcut'", shortcut="shortcut"),
    Naming(unwrapped=True),
    _sequential(4, _CHILDREN, "downsample"),
    _sequential(3, f"{_CHILDREN} without max-pool", "downsample", ("max-pool",)),
    # Its stem's ReLU is a function call, which the children of the net do not include.
    _sequential(2, _LIGHTLY_CHILDREN, "shortcut", ("max-pool", "ReLU")),
)


@dataclass(frozen=True)
class Candidate:
    """One network in a file."""

    where: str
    """The dictionary that holds it, as `Contents.states` names it."""
    prefix: str
    """What stands in front of each of its keys."""
    naming: Naming
    found: int
    """How many of the wanted names are there."""
    matched: int
    """How many of them have the wanted shape."""

    def key(self, name: str) -> str:
        """What the file calls our weight `name`."""
        return self.prefix + self.naming(name)


# Words in the place of a network that say which of two it is.
PREFERRED = {"teacher", "teacher_backbone"}
SECOND = {
    *("student", "student_backbone", "encoder_k", "momentum_encoder", "momentum_backbone"),
    *("key_backbone", "key_encoder", "backbone_momentum"),
}


def candidates(states: Mapping[str, State], wanted: Shapes, free_kernel: bool) -> list[Candidate]:
    """Every network with names like those of `wanted`.

    With `free_kernel` the first convolution may be 3x3 or 7x7, whichever is wanted.
    """
    found = []
    tried = set()
    for naming in NAMINGS:
        names = {naming(key): key for key in wanted}
        if tuple(names) in tried:
            continue
        tried.add(tuple(names))
        for where, state in states.items():
            counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
            for name, tensor in state.items():
                parts = name.split(".")
                for at in range(len(parts)):
                    key = names.get(".".join(parts[at:]))
                    if key is not None:
                        count = counts["".join(f"{part}." for part in parts[:at])]
                        count[0] += 1
                        count[1] += fits(key, tensor, wanted[key], free_kernel)
            found += [Candidate(where, prefix, naming, *n) for prefix, n in counts.items()]
    return found


def best(found: Sequence[Candidate], total: int) -> list[Candidate]:
    """The network meant, first; more than one if several are complete and nothing decides.

    A teacher comes before its student and a query net before its key net, even where only the
    lesser one is complete. What has less than half as many names as another is no network.
    """
    most = max((c.found for c in found), default=0)
    plausible = [c for c in found if 2 * c.found >= most]
    first = min((_rank(c) for c in plausible), default=0)
    ordered = sorted(
        (c for c in plausible if _rank(c) == first), key=lambda c: (-c.matched, -c.found)
    )
    complete: dict[tuple[str, str], Candidate] = {}
    for c in ordered:
        if c.matched == total:
            complete.setdefault((c.where, c.prefix), c)
    return list(complete.values()) if len(complete) > 1 else ordered[:1]


def fits(key: str, tensor: Tensor, shape: torch.Size, free_kernel: bool) -> bool:
    """Whether a tensor of the file can be the weight `key` of this shape."""
    if free_kernel and key == "conv1.weight":
        return tensor.shape[:2] == shape[:2] and tuple(tensor.shape[2:]) in ((3, 3), (7, 7))
    return tensor.shape == shape or _is_split(key, tensor, shape)


def strangers(candidate: Candidate, state: State, wanted: Shapes, head: str) -> list[str]:
    """Weights inside the modules of the net that the net, whose classifier is `head`, has not.

    A deeper ResNet has every weight of a shallower one, so these alone tell them apart.
    """
    names = {candidate.key(key) for key in wanted}
    inside = {key.partition(".")[0] for key in map(candidate.naming, wanted)}
    return [
        name
        for name in state
        if name.startswith(candidate.prefix)
        and name.removeprefix(candidate.prefix).partition(".")[0] in inside
        and name not in names
        and not name.startswith(f"{candidate.key(head)}.")
        and not name.endswith("num_batches_tracked")
    ]


def joined(key: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """Average the statistics of the groups of a SplitBatchNorm: [groups * C] to [C]."""
    split = tensor.shape != shape and _is_split(key, tensor, shape)
    return tensor.double().view(-1, *shape).mean(dim=0).to(tensor.dtype) if split else tensor


def _is_split(key: str, tensor: Tensor, shape: torch.Size) -> bool:
    is_statistic = key.endswith((".running_mean", ".running_var"))
    return is_statistic and tensor.dim() == 1 and len(tensor) > 0 and len(tensor) % shape[0] == 0


def _rank(candidate: Candidate) -> int:
    words = {*candidate.where.split("."), *candidate.prefix.split(".")}
    return 0 if words & PREFERRED else 2 if words & SECOND else 1


@dataclass(frozen=True)
class Layout:
    """Software that writes files of this kind."""

    name: str
    objective: str
    prefix: str
    signs: tuple[str, ...] = ()
    """Beginnings of other keys, one of which has to be there."""
    where: str = ""
    """The dictionary, if that tells it from another."""


LAYOUTS = (
    Layout("MoCo, CIFAR notebook", "moco_v2", "encoder_q.net."),
    Layout("MoCo v2", "moco_v2", "encoder_q.", ("encoder_q.fc.0.",)),
    Layout("MoCo v1", "moco_v1", "encoder_q.", ("encoder_q.fc.weight",)),
    Layout("MoCo v3", "moco_v3", "base_encoder.", ("momentum_encoder.", "predictor.")),
    Layout("SwAV", "swav", "", ("prototypes.", "projection_head.")),
    Layout("DINO, full", "dino", "backbone.", ("head.last_layer.", "head.mlp."), "teacher"),
    Layout("Barlow Twins, full", "barlow_twins", "backbone.", ("projector.",), "model"),
    Layout("lightly", "unknown", "backbone.", ("projection_head.", "online_classifier.", "key_")),
    Layout("lightly", "dino", "teacher_backbone."),
    Layout(
        "solo-learn",
        "unknown",
        "backbone.",
        ("classifier.", "projector.", "momentum_backbone."),
        "state_dict",
    ),
    Layout("solo-learn, old", "unknown", "encoder.", ("classifier.", "projector.", "momentum_")),
    Layout("torchvision or timm", "unknown", ""),
)


def recognise(states: Mapping[str, State], candidate: Candidate) -> Layout:
    """Whose file it is; names of torchvision under a prefix that is in no table pass too."""
    names = tuple(states[candidate.where])
    for layout in LAYOUTS:
        signed = not layout.signs or any(name.startswith(layout.signs) for name in names)
        if layout.prefix == candidate.prefix and signed and layout.where in ("", candidate.where):
            return layout
    return Layout(f"nets under '{candidate.prefix}'", "unknown", candidate.prefix)


def ignored(states: Mapping[str, State], candidate: Candidate, used: set[str]) -> dict[str, int]:
    """Count the tensors that nothing was made of, by where they stand."""
    groups: Counter[str] = Counter()
    for where, state in states.items():
        if where != candidate.where:
            groups[f"{where.partition('.')[0]}." if where else "top."] += len(state)
            continue
        for name in state:
            if name not in used:
                inside = name.removeprefix(candidate.prefix)
                start = candidate.prefix if inside != name else ""
                first, dot, _ = inside.partition(".")
                groups[start + first + dot] += 1
    return dict(groups)
