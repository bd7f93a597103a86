"""The distilled dataset as training sees it: batches of replayed views with their soft labels."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from scdd.augment import normalise
from scdd.config.section import Triple
from scdd.distilled.computed_labels import TEACHER, ComputedLabels
from scdd.distilled.format import Header
from scdd.distilled.hdf5 import refuse
from scdd.distilled.reader import DistilledFile
from scdd.distilled.records import MIXES, ViewRecords, group_members, group_sizes
from scdd.distilled.views import hard_label_weights, render_views

LABEL_BYTES = 16 * 2**20
"""Soft labels that are read and kept at a time, if a view is not larger."""
RENDERED_BYTES = 64 * 2**20
"""Largest view that is rendered and kept as a whole."""


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """B rendered images and all that a loss may want of them, on one device."""

    images: Tensor
    """float32 [B, 3, S, S], normalised."""
    logits: Tensor | None
    """The teacher's, float32 [B, C]; None without soft labels."""
    labels: Tensor
    """int64 [B]; -1 is none."""
    partner_labels: Tensor
    """int64 [B], of the image mixed in; equal to `labels` without mixing."""
    label_weight: Tensor
    """float32 [B], share of the own label; 1 without mixing."""


class DistilledDataset:
    """Images, labels and view records in memory; soft labels are read from the file view by view.

    Where the codec is `teacher`, they are computed view by view instead.

    Holds the file's path, not a handle, so it may be forked, pickled and sent to other processes.

    Attributes:
        path: the file.
        header: what the file says of itself.
        images: uint8 [N, 3, S, S] on the device.
        labels: int64 [N] on the device.
        records: the views on the device, or None where there are images alone.
        label_bytes: size of the stored soft labels and view records of these images; 0 where no
            soft label serves. Where the teacher computes them, its weights count.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        images: Tensor,
        labels: Tensor,
        records: ViewRecords | None,
        label_bytes: int,
        computed: ComputedLabels | None = None,
    ) -> None:
        self.path, self.header = path, header
        self.images, self.labels, self.records = images, labels, records
        self.label_bytes, self._computed = label_bytes, computed
        self._digest = header.digest
        group = None if records is None else records.parameters.get("group")
        self._group_sizes = None if group is None else group_sizes(group.cpu())
        self._cached: tuple[int, Tensor] | None = None
        self._shown: tuple[int, Tensor] | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        device: torch.device | str = "cpu",
        teacher: str | Path | None = None,
    ) -> Self:
        """Read a distilled file onto a device, all but the soft labels.

        Args:
            path: the file.
            device: where everything is kept and views are rendered.
            teacher: weights of the teacher, where it is to compute the soft labels (codec
                `teacher`); not given: teacher.safetensors beside the file.

        Raises:
            FormatError: if the file cannot be used.
        """
        with DistilledFile(path) as file:
            records = None if file.views is None else file.views.to(device)
            images, labels = file.images().to(device), file.labels().to(device)
            stored, computed = file.label_bytes if file.codec is not None else 0, None
            if records is not None and file.codec is not None and not file.codec.layout:
                weights = Path(teacher or file.path.with_name(TEACHER))
                computed = ComputedLabels(file.path, weights, file.header, images, records)
                stored = stored + computed.weight_bytes if computed.weight_bytes else 0
            return cls(file.path, file.header, images, labels, records, stored, computed)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.header.class_names

    @property
    def mean(self) -> Triple:
        """Mean per channel that images are normalised by."""
        return self.header.mean

    @property
    def std(self) -> Triple:
        """Standard deviation per channel that images are normalised by."""
        return self.header.std

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.header.image_size

    @property
    def num_views(self) -> int:
        """Number of stored views V; 0 where images are shown as they are."""
        return 0 if self.records is None else self.records.count()

    @property
    def has_soft_labels(self) -> bool:
        """Whether `soft_labels` serves."""
        return self.label_bytes > 0

    def subset(self, ipc: int) -> "DistilledDataset":
        """Keep the first `ipc` images of each class.

        Soft labels stay only if no partner and no group reaches beyond the subset; otherwise
        mixing goes too, and the crops and flips serve training on class labels.

        Raises:
            FormatError: if the file has no fixed number of images per class, or fewer.
        """
        stored = self.header.ipc
        if stored is None:
            refuse(self.path, "the images have no fixed number per class", "use all of them")
        if not 1 <= ipc <= stored:
            refuse(
                self.path,
                f"there are {stored} images per class",
                f"ask for 1 .. {stored}, not {ipc}",
            )
        count = ipc * len(self.classes)
        records, closed = None, True
        if self.records is not None:
            closed = _is_closed(self.records, count)
            records = _first_images(self.records, count, keep_all=closed)
        computed = self._computed
        fixed = computed.weight_bytes if computed is not None else 0
        found = DistilledDataset(
            self.path,
            dataclasses.replace(self.header, ipc=ipc),
            self.images[:count],
            self.labels[:count],
            records,
            (self.label_bytes - fixed) * count // len(self) + fixed if closed else 0,
            computed.first(count) if computed is not None and closed else None,
        )
        found._digest = self._digest
        return found

    def soft_labels(self, view: int) -> Tensor:
        """Return the soft labels of one view, float32 [N, C] on the device.

        A few views that follow are read with it and kept, as epochs ask for them in turn.

        Raises:
            FormatError: as `check_soft_labels` does, or if the file has changed since it was
                opened.
            CheckpointError: as `check_soft_labels` does.
        """
        self.check_soft_labels()
        if self._computed is not None:
            return self._computed.view(view)
        if self._cached is None or not 0 <= view - self._cached[0] < len(self._cached[1]):
            bytes_a_view = 4 * len(self) * len(self.classes)
            last = min(view + max(1, LABEL_BYTES // bytes_a_view), self.num_views)
            with DistilledFile(self.path, contents=False) as file:
                if file.header.digest != self._digest:
                    refuse(self.path, "the file has changed since it was opened", "open it again")
                logits = [file.logits(number)[: len(self)] for number in range(view, last)]
            self._cached = view, torch.stack(logits).to(self.images.device)
        return self._cached[1][view - self._cached[0]]

    def check_soft_labels(self) -> None:
        """Refuse, before any is asked for, soft labels that do not serve.

        Raises:
            FormatError: if there are none, if they do not serve this subset, or if the teacher that
                is to compute them is not there or another.
            CheckpointError: if that teacher cannot be read.
        """
        if self._computed is not None:
            self._computed.check()
        elif not self.has_soft_labels:
            if self.header.target_kind == "none":
                refuse(
                    self.path, "the file has no soft labels", "relabel it, or train on class labels"
                )
            refuse(
                self.path,
                f"partners or groups of the stored views lie outside the first {self.header.ipc} "
                "images per class",
                f"relabel for ipc {self.header.ipc}",
            )

    def epoch(
        self, epoch: int, batch: int, generator: torch.Generator, skip: int = 0
    ) -> Iterator[Batch]:
        """Show every image once, in an order drawn from `generator` (on the CPU).

        Epoch e shows view e mod V, or the images as they are where no view is stored. A batch of
        grouped views is a whole number of groups.

        Args:
            epoch: counted from 0.
            batch: images per batch; the last may have fewer, and one image alone joins the batch
                before it.
            generator: gives the order; the same state gives the same epoch.
            skip: batches to leave out at the start, without rendering them.

        Raises:
            ValueError: if `batch` is below 1, or below the size of a group.
        """
        count, each = self._units(batch)
        view = epoch % self.num_views if self.num_views else 0
        parts = list(torch.randperm(count, generator=generator).split(each))
        if len(parts) > self.steps(batch):
            parts[-2:] = [torch.cat(parts[-2:])]
        if self._group_sizes is not None:
            assert self.records is not None
            members = group_members(self.records.parameters["group"][view].cpu())
            parts = [torch.cat([members[group] for group in part.tolist()]) for part in parts]
        return (self._batch(view, part) for part in parts[skip:])

    def steps(self, batch: int) -> int:
        """Batches of `epoch`, the same number in every epoch.

        Raises:
            ValueError: as `epoch` does.
        """
        count, each = self._units(batch)
        full, rest = divmod(count, each)
        lonely = self._group_sizes is None and full > 0 and rest == 1
        return full + (rest > 0) - lonely

    def _units(self, batch: int) -> tuple[int, int]:
        """Number of images or groups, and how many of them make a batch."""
        if batch < 1:
            raise ValueError(f"a batch of {batch} images is empty")
        if self._group_sizes is None:
            return len(self), batch
        largest = self._group_sizes[0]
        if batch < largest:
            raise ValueError(
                f"labels were made in groups of {largest} images; a batch of {batch} holds none; "
                f"make it at least {largest}"
            )
        return len(self._group_sizes), batch // largest

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_cached": None, "_shown": None}

    def _rendered(self, view: int, index: Tensor) -> Tensor:
        """Images of one view, [B, 3, S, S]; a small set is rendered whole, once for its batches."""
        assert self.records is not None
        if 4 * self.images.numel() > RENDERED_BYTES:
            return render_views(self.images, self.records, view, index)
        if self._shown is None or self._shown[0] != view:
            every = torch.arange(len(self), device=self.images.device)
            self._shown = view, render_views(self.images, self.records, view, every)
        return self._shown[1][index]

    def _batch(self, view: int, index: Tensor) -> Batch:
        index = index.to(self.images.device, non_blocking=True)  # Training must not wait for it.
        if self.records is None:
            images, partner = self.images[index].float() / 255, index
            weight = torch.ones(len(index), device=index.device)
        else:
            images = self._rendered(view, index)
            partner, weight = hard_label_weights(self.records, view, index, self.image_size)
        return Batch(
            normalise(images, self.mean, self.std),
            self.soft_labels(view)[index] if self.has_soft_labels else None,
            self.labels[index],
            self.labels[partner],
            weight,
        )


def _is_closed(records: ViewRecords, count: int) -> bool:
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


def _first_images(records: ViewRecords, count: int, keep_all: bool) -> ViewRecords | None:
    """Records of the first `count` images, without mixes and groups unless all are kept."""
    ops = records.ops if keep_all else tuple(op for op in records.ops if op not in MIXES)
    dropped = () if keep_all else ("partner", "lambda", "box", "group")
    parameters = {n: p[:, :count] for n, p in records.parameters.items() if n not in dropped}
    return ViewRecords(ops, parameters, records.padding) if parameters else None
