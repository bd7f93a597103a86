"""MoCo v2 (arXiv:1911.05722, arXiv:2003.04297): contrast against a queue of momentum keys."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.config.objectives import MocoV2Config
from scdd.distributed import gather, own_rows, rank_and_size, total
from scdd.objectives.base import Batch, Loss, Objective
from scdd.objectives.ema import follow
from scdd.synced_batchnorm import synced


class MocoV2(Objective):
    """InfoNCE between a view's query and the other view's key, with queued keys as negatives.

    Several processes equal one with their whole batch, but for one thing: where keys are split, a
    process's key encoder keeps running statistics of the groups that fall to it, not of all.
    Nothing reads them, since it works in train mode.
    """

    queue: Tensor
    pointer: Tensor

    def __init__(self, backbone: nn.Module, cfg: MocoV2Config) -> None:
        super().__init__()
        self.cfg = cfg
        head = _head(int(backbone.feature_dim), cfg)  # type: ignore[arg-type]
        key_encoder = copy.deepcopy(nn.Sequential(backbone, head)).requires_grad_(False)
        self.backbone, self.head = synced(backbone), head
        # Split keys have statistics of their own on purpose, so those stay apart.
        self.key_encoder = key_encoder if cfg.key_splits > 1 else synced(key_encoder)
        self.register_buffer("queue", F.normalize(torch.randn(cfg.queue, cfg.dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def forward(self, batch: Batch) -> Loss:
        """Return the loss and move the key encoder and the queue on.

        Keys enter the queue after the logits are built, so an image never meets its own key as a
        negative of the same step. The EMA covers parameters; BatchNorm buffers of the key encoder
        come from its own forward passes.
        """
        view1, view2 = batch.views
        own = own_rows(len(view1))
        queries = [self._query(view1)]
        if self.cfg.symmetric:
            queries.append(self._query(view2))
        with torch.no_grad():
            follow(self.key_encoder, [self.backbone, self.head], self.cfg.momentum)
            keys = [self._keys(view2, batch.generator)]
            if self.cfg.symmetric:
                keys.append(self._keys(view1, batch.generator))
        losses = [self._info_nce(q, k[own]) for q, k in zip(queries, keys, strict=True)]
        self._enqueue(torch.cat(keys))
        return Loss(torch.stack(losses).mean(), queries[0].detach())

    def _query(self, view: Tensor) -> Tensor:
        return F.normalize(self.head(self.backbone(view)).float(), dim=1)

    def _keys(self, view: Tensor, generator: torch.Generator) -> Tensor:
        """Encode the keys of all processes, [B of all, dim] in the order of their ranks.

        In shuffled groups of their own BatchNorm statistics if so configured: the groups run over
        the batch of all processes, each of which encodes its share of them.
        """
        if self.cfg.key_splits == 1:
            return gather(F.normalize(self.key_encoder(view).float(), dim=1))
        images = gather(view)
        rank, size = rank_and_size()
        order = torch.randperm(len(images), generator=generator).to(view.device, non_blocking=True)
        keys = torch.zeros(len(images), self.cfg.dim, device=view.device)
        for group in order.tensor_split(self.cfg.key_splits)[rank::size]:
            keys[group] = self.key_encoder(images[group]).float()
        return F.normalize(total(keys), dim=1)

    def _info_nce(self, query: Tensor, key: Tensor) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            positive = (query * key).sum(dim=1, keepdim=True)
            negative = query @ self.queue.T
            logits = torch.cat([positive, negative], dim=1) / self.cfg.temperature
            first = torch.zeros(len(query), dtype=torch.long, device=key.device)
            return F.cross_entropy(logits, first)

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
