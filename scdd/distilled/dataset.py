"""The distilled dataset as training sees it: replayed views of the images with soft labels."""

import dataclasses
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from scdd.augment import normalise
from scdd.distilled.batches import Batch, DrawnBatches, Sample, batch_count, draw_batches
from scdd.distilled.computed_labels import TEACHER, ComputedLabels
from scdd.distilled.described import Described, position
from scdd.distilled.format import Header
from scdd.distilled.hdf5 import refuse
from scdd.distilled.reader import DistilledFile
from scdd.distilled.records import ViewRecords, group_sizes
from scdd.distilled.stored_labels import StoredLabels
from scdd.distilled.subset import first_images, is_closed
from scdd.distilled.views import hard_label_weights, render_views

RENDERED_BYTES, CACHED_BYTES = 64 * 2**20, 8 * 2**20
"""Largest view that an epoch renders and keeps as a whole: on an accelerator, where launching
operations is what costs, and on a CPU, whose caches should hold it."""


class DistilledDataset(Described, Dataset[Sample]):
    """Images, labels and view records in memory; soft labels are read from the file when wanted.

    Where the codec is `teacher`, they are computed view by view instead.

    Either iterate over `epoch`, which makes batches on the device, or give this to a DataLoader
    and call `set_epoch` before each pass, as one does with a DistributedSampler. A sample depends
    on its view and its image alone: it is the same, bit by bit, in both, in a batch of any size and
    from any worker (but for the rounding of labels that a teacher computes).

    Labels of grouped views (`teacher_bn: batch`) were made from the statistics of their group. Any
    DataLoader shows the pixels that such a label was made for, but only `epoch` and `batch_sampler`
    keep groups together, so that BatchNorm in the student sees what it saw in the teacher.

    May be forked and pickled; every process opens the file for itself.

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
        source: StoredLabels | ComputedLabels | None,
    ) -> None:
        self.path, self.header = path, header
        self.images, self.labels, self.records = images, labels, records
        self.label_bytes, self._source = label_bytes, source
        group = None if records is None else records.parameters.get("group")
        self._group_sizes = None if group is None else group_sizes(group.cpu())
        self._shown: tuple[int, Tensor] | None = None
        # Workers that live through all epochs see what is written here.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

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
            source: StoredLabels | ComputedLabels | None = None
            size = 0
            if records is not None and file.codec is not None and not file.codec.layout:
                weights = Path(teacher or file.path.with_name(TEACHER))
                source = ComputedLabels(file.path, weights, file.header, images, records)
                size = file.label_bytes + source.weight_bytes if source.weight_bytes else 0
            elif file.codec is not None:
                source = StoredLabels(file.path, file.header.digest, len(images), device)
                size = file.label_bytes
            return cls(file.path, file.header, images, labels, records, size, source)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Return several samples, rendered together; this is what a DataLoader calls."""
        if get_worker_info() is not None and self.images.device.type != "cpu":
            raise ValueError(
                f"a worker cannot use images on {self.images.device}; open the file on the CPU, or "
                "take num_workers=0"
            )
        rows = torch.tensor([position(i, len(self), "images") for i in indices], dtype=torch.int64)
        batch = self._batch(self._view(int(self._epoch)), rows, soft_labels=True, keep=False)
        logits = batch.images.new_empty(len(rows), 0) if batch.logits is None else batch.logits
        fields = batch.images, logits, batch.labels, batch.partner_labels, batch.label_weight
        return [Sample(*values) for values in zip(*fields, strict=True)]

    def set_epoch(self, epoch: int) -> None:
        """Choose the view of samples, e mod V, also in workers that are running already."""
        self._epoch.fill_(operator.index(epoch))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.header.class_names

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
        most = self.header.ipc
        if most is None:
            refuse(self.path, "the images have no fixed number per class", "use all of them")
        if not 1 <= ipc <= most:
            refuse(
                self.path, f"there are {most} images per class", f"ask for 1 .. {most}, not {ipc}"
            )
        count = ipc * len(self.classes)
        records, closed = None, True
        if self.records is not None:
            closed = is_closed(self.records, count)
            records = first_images(self.records, count, keep_all=closed)
        source = self._source if closed else None
        fixed = source.weight_bytes if isinstance(source, ComputedLabels) else 0
        found = DistilledDataset(
            self.path,
            dataclasses.replace(self.header, ipc=ipc),
            self.images[:count],
            self.labels[:count],
            records,
            (self.label_bytes - fixed) * count // len(self) + fixed if source is not None else 0,
            source.first(count) if source is not None else None,
        )
        found.set_epoch(int(self._epoch))
        return found

    def soft_labels(self, view: int) -> Tensor:
        """Return the soft labels of one view, float32 [N, C] on the device.

        Raises:
            FormatError, CheckpointError: as `check_soft_labels` does.
        """
        if self._source is None:
            self._refuse_soft_labels()
        return self._source.view(view)

    def check_soft_labels(self) -> None:
        """Refuse, before any is asked for, soft labels that do not serve.

        Raises:
            FormatError: if there are none, if they do not serve this subset, if the file has
                changed since it was opened, or if the teacher that is to compute them is not there
                or another.
            CheckpointError: if that teacher cannot be read.
        """
        if self._source is None:
            self._refuse_soft_labels()
        self._source.check()

    def _refuse_soft_labels(self) -> NoReturn:
        if self.header.target_kind == "none":
            refuse(self.path, "the file has no soft labels", "relabel it, or train on class labels")
        refuse(
            self.path,
            f"partners or groups of the stored views lie outside the first {self.header.ipc} "
            "images per class",
            f"relabel for ipc {self.header.ipc}",
        )

    def epoch(
        self,
        epoch: int,
        batch: int,
        generator: torch.Generator,
        skip: int = 0,
        soft_labels: bool = True,
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
            soft_labels: whether to read or compute them, where they serve.

        Raises:
            ValueError: if `batch` is below 1, or below the size of a group.
        """
        view = self._view(epoch)
        parts = self._draw(view, batch, generator)
        return (self._batch(view, part, soft_labels, keep=True) for part in parts[skip:])

    def steps(self, batch: int) -> int:
        """Batches of `epoch`, the same number in every epoch.

        Raises:
            ValueError: as `epoch` does.
        """
        return batch_count(len(self), self._group_sizes, batch)

    def batch_sampler(self, batch: int, generator: torch.Generator) -> DrawnBatches:
        """The batches of `epoch` for DataLoader(data, batch_sampler=...), groups kept together.

        Every pass is that of the epoch set last and draws its order anew.

        Raises:
            ValueError: as `epoch` does.
        """
        return DrawnBatches(
            lambda: self._draw(self._view(int(self._epoch)), batch, generator), self.steps(batch)
        )

    def _view(self, epoch: int) -> int:
        return epoch % self.num_views if self.num_views else 0

    def _draw(self, view: int, batch: int, generator: torch.Generator) -> list[Tensor]:
        group = None
        if self._group_sizes is not None:
            assert self.records is not None
            group = self.records.parameters["group"][view].cpu()
        return draw_batches(len(self), group, self._group_sizes, batch, generator)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_shown": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._epoch.share_memory_()

    def _rendered(self, view: int, index: Tensor, keep: bool) -> Tensor:
        """Images of one view, [B, 3, S, S]; `keep` renders a small set whole, for other batches."""
        assert self.records is not None
        most = CACHED_BYTES if self.images.device.type == "cpu" else RENDERED_BYTES
        if not keep or 4 * self.images.numel() > most:
            return render_views(self.images, self.records, view, index)
        shown = self._shown
        if shown is None or shown[0] != view:
            every = torch.arange(len(self), device=self.images.device)
            self._shown = shown = view, render_views(self.images, self.records, view, every)
        return shown[1][index]

    def _batch(self, view: int, rows: Tensor, soft_labels: bool, keep: bool) -> Batch:
        """Images of one view, by their rows int64 [B] on the CPU."""
        wanted = soft_labels and self.has_soft_labels
        index = rows.to(self.images.device, non_blocking=True)  # Training must not wait for it.
        if self.records is None:
            images, partner = self.images[index].float() / 255, index
            weight = torch.ones(len(index), device=index.device)
        else:
            images = self._rendered(view, index, keep)
            partner, weight = hard_label_weights(self.records, view, index, self.image_size)
        return Batch(
            normalise(images, self.mean, self.std),
            self._source.rows(view, rows) if wanted and self._source is not None else None,
            self.labels[index],
            self.labels[partner],
            weight,
        )
