"""The first images of a file: what of its views still serves without the others."""

import torch

from scdd.distilled.records import MIXES, ViewRecords, group_sizes


def is_closed(records: ViewRecords, count: int) -> bool:
    """Whether no partner and no group of the first `count` images has to do with the others."""
    partner = records.parameters.get("partner")
    if partner is not None and (partner[:, :count] >= count).any():
        return False
    group = records.parameters.get("group")
    if group is None:
        return True
    if group_sizes(group[:, :count].cpu()) is None:
        return False  # epochs would differ in their number of batches
    return not any(torch.isin(own[:count], own[count:]).any() for own in group)


def first_images(records: ViewRecords, count: int, keep_all: bool) -> ViewRecords | None:
    """Records of the first `count` images, without mixes and groups unless all are kept."""
    ops = records.ops if keep_all else tuple(op for op in records.ops if op not in MIXES)
    dropped = () if keep_all else ("partner", "lambda", "box", "group")
    parameters = {n: p[:, :count] for n, p in records.parameters.items() if n not in dropped}
    return ViewRecords(ops, parameters, records.padding) if parameters else None
