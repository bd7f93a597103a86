"""Images and representations as pre-training sees them: one stream, however they are stored."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from scdd.augment import denormalise, normalise
from scdd.distilled.batches import batch_count, draw_batches
from scdd.distilled.described import Described, position
from scdd.distilled.format import Header
from scdd.distilled.pairs import Pairs
from scdd.distilled.reader import DistilledFile


class Pair(NamedTuple):
    """An image and its target; of B of them, a batch."""

    images: Tensor
    """float32 [3, S, S] or [B, 3, S, S], normalised."""
    targets: Tensor
    """float32 [d] or [B, d]."""


class Cut(NamedTuple):
    """What 8 bits have no room for."""

    share: float
    """Of the values, that left 0 .. 255."""
    levels: float
    """By how much, on average of these."""

    def __str__(self) -> str:
        by = f", by {self.levels:.2g} levels on average" if self.share else ""
        return f"{100 * self.share:.2g} % of the values left 0 .. 255 and were cut{by}"


class RepresentationDataset(Described, Dataset[Pair]):
    """All views of all images with their representations, view by view: V times m pairs.

    Pair v * m + i is image i in view v. A factored set is decoded as it is asked for, so it is the
    same stream as that of the dense set it makes, up to the rounding of float32. Iterate over
    `epoch`, or give this to a DataLoader.

    Attributes:
        path: the file.
        header: what the file says of itself.
        parts: the set on the device.
    """

    def __init__(self, path: Path, header: Header, parts: Pairs) -> None:
        self.path, self.header, self.parts = path, header, parts

    @classmethod
    def open(cls, path: str | Path, device: torch.device | str = "cpu") -> Self:
        """Read a file onto a device.

        Raises:
            FormatError: if the file cannot be used, or holds no representations.
        """
        with DistilledFile(path) as file:
            return cls(file.path, file.header, file.pairs().to(device))

    def __len__(self) -> int:
        return self.parts.num_views * len(self.parts)

    def __getitem__(self, index: int) -> Pair:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Pair]:
        """Return several pairs, decoded together; this is what a DataLoader calls."""
        rows = [position(index, len(self), "pairs") for index in indices]
        batch = self.batch(torch.tensor(rows, dtype=torch.int64))
        return [Pair(*pair) for pair in zip(*batch, strict=True)]

    @property
    def target_dim(self) -> int:
        """Length of a representation d."""
        return self.header.target_dim

    @property
    def num_views(self) -> int:
        """Number of views V, the image as it is among them."""
        return self.parts.num_views

    def images(self, view: int, rows: Tensor | None = None) -> Tensor:
        """Return images of a view, normalised float32 [B, 3, S, S]; `rows` int64 [B] or all m."""
        found = self.parts.images(view, rows).detach()
        if found.dtype == torch.uint8:
            return normalise(found.float() / 255, self.mean, self.std)
        return found

    def pixels(self, view: int, rows: Tensor | None = None) -> Tensor:
        """Return images as `images` does, to be shown: uint8 [B, 3, S, S].

        Decoded images may leave 0 .. 1; such pixels become black or white in their channel.
        """
        return self._levels(view, rows).clamp(0, 255).byte()

    def cut(self, view: int) -> Cut:
        """Return what `pixels` takes from the images of a view."""
        levels = self._levels(view, None)
        beyond = (levels - levels.clamp(0, 255)).abs()
        count = int((beyond > 0).sum())
        return Cut(count / beyond.numel(), float(beyond.sum()) / max(count, 1))

    def _levels(self, view: int, rows: Tensor | None) -> Tensor:
        """Images as whole numbers, 0 .. 255 and beyond, float32 [B, 3, S, S]."""
        return (255 * denormalise(self.images(view, rows), self.mean, self.std)).round()

    def targets(self, view: int, rows: Tensor | None = None) -> Tensor:
        """Return targets of a view, float32 [B, d]; `rows` int64 [B] or all m."""
        return self.parts.targets(view, rows).detach()

    def whole(self, stored: bool = False) -> Pair:
        """Return all pairs; with `stored`, targets as they are stored where both kinds are."""
        views = range(self.num_views)
        with torch.no_grad():
            targets = [self.parts.targets(view, stored=stored) for view in views]
        return Pair(torch.cat([self.images(view) for view in views]), torch.cat(targets))

    def batch(self, index: Tensor) -> Pair:
        """Return pairs by their numbers int64 [B]."""
        count, device = len(self.parts), self.parts.device
        views = index.div(count, rounding_mode="floor").cpu()
        size = self.image_size
        images = torch.empty(len(index), 3, size, size, device=device)
        targets = torch.empty(len(index), self.target_dim, device=device)
        for view in views.unique().tolist():
            places = (views == view).nonzero().squeeze(1)
            rows, places = (index[places] % count).to(device), places.to(device)
            images[places], targets[places] = self.images(view, rows), self.targets(view, rows)
        return Pair(images, targets)

    def epoch(self, batch: int, generator: torch.Generator, skip: int = 0) -> Iterator[Pair]:
        """Show every pair once, in an order drawn from `generator` (on the CPU).

        Args:
            batch: pairs per batch; the last may have fewer, and one pair alone joins the batch
                before it.
            generator: gives the order; the same state gives the same epoch.
            skip: batches to leave out at the start, without decoding them.

        Raises:
            ValueError: if `batch` is below 1.
        """
        parts = draw_batches(len(self), None, None, batch, generator)
        return (self.batch(part) for part in parts[skip:])

    def steps(self, batch: int) -> int:
        """Batches of `epoch`.

        Raises:
            ValueError: as `epoch` does.
        """
        return batch_count(len(self), None, batch)
