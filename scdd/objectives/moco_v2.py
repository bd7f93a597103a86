"""MoCo v2 (arXiv:1911.05722, arXiv:2003.04297): contrast against a queue of momentum keys."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.config.squeeze import MocoV2Config


class MocoV2(nn.Module):
    """InfoNCE between a view's query and the other view's key, with queued keys as negatives."""

    queue: Tensor
    pointer: Tensor

    def __init__(self, backbone: nn.Module, cfg: MocoV2Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.backbone = backbone
        self.head = _head(int(backbone.feature_dim), cfg)  # type: ignore[arg-type]
        self.key_encoder = copy.deepcopy(nn.Sequential(self.backbone, self.head))
        self.key_encoder.requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(cfg.queue, cfg.dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def forward(self, view1: Tensor, view2: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss [] of a batch and move the key encoder and the queue on.

        Keys enter the queue after the logits are built, so an image never meets its own key as a
        negative of the same step. The EMA covers parameters; BatchNorm buffers of the key encoder
        come from its own forward passes.
        """
        queries = [self._query(view1)]
        if self.cfg.symmetric:
            queries.append(self._query(view2))
        with torch.no_grad():
            self._follow()
            keys = [self._key(view2, generator)]
            if self.cfg.symmetric:
                keys.append(self._key(view1, generator))
        losses = [self._info_nce(q, k) for q, k in zip(queries, keys, strict=True)]
        self._enqueue(torch.cat(keys))
        return torch.stack(losses).mean()

    def _query(self, view: Tensor) -> Tensor:
        return F.normalize(self.head(self.backbone(view)), dim=1)

    def _key(self, view: Tensor, generator: torch.Generator) -> Tensor:
        """Encode keys, in shuffled groups of their own BatchNorm statistics if so configured."""
        if self.cfg.key_splits == 1:
            return F.normalize(self.key_encoder(view), dim=1)
        order = torch.randperm(len(view), generator=generator, device=generator.device)
        order = order.to(view.device)
        groups = view[order].tensor_split(self.cfg.key_splits)
        keys = torch.cat([self.key_encoder(group) for group in groups])
        return F.normalize(keys[order.argsort()], dim=1)

    def _info_nce(self, query: Tensor, key: Tensor) -> Tensor:
        positive = (query * key).sum(dim=1, keepdim=True)
        negative = query @ self.queue.T
        logits = torch.cat([positive, negative], dim=1).float() / self.cfg.temperature
        return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=key.device))

    @torch.no_grad()
    def _follow(self) -> None:
        online: list[Tensor] = [*self.backbone.parameters(), *self.head.parameters()]
        slow: list[Tensor] = list(self.key_encoder.parameters())
        torch._foreach_lerp_(slow, online, 1 - self.cfg.momentum)

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        # Cloned: the backward pass of this step still needs the old queue.
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % self.cfg.queue
        self.queue = self.queue.index_copy(0, places, keys.to(self.queue.dtype))
        self.pointer = (self.pointer + len(keys)) % self.cfg.queue


def _head(features: int, cfg: MocoV2Config) -> nn.Module:
    if not cfg.mlp:
        return nn.Linear(features, cfg.dim)
    return nn.Sequential(
        nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, cfg.dim)
    )
