"""Images decoded whenever they are wanted: any number of them in the memory of a few batches."""

import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import parent_process
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from scdd.augment import CropDraw
from scdd.config.section import Triple
from scdd.datasets.file_index import FileIndex
from scdd.datasets.image_decoding import bombs_refused, read_rgb
from scdd.datasets.image_folder import decode_files
from scdd.datasets.sources import Request
from scdd.errors import DataError, RunError

AHEAD = 2
"""Requests that a worker has in hand or done."""
PIXELS_AT_ONCE = 2**22
"""Decoded pixels after which a worker makes crops of what it has; some twenty photographs."""
MOST_WORKERS = 16


@dataclass(eq=False)
class StreamingSource:
    """Images of a folder, decoded anew for every read and every crop.

    Crops are cut from the original image, where a resident source cuts them from one that was
    brought to `image_size` before. How many workers there are changes no result.
    """

    files: FileIndex
    rows: Tensor
    """Which of the files: int64 [N]."""
    mean: Triple
    std: Triple
    image_size: int
    """Side in pixels that `read` gives when no other is asked for."""
    device: torch.device
    workers: int
    """Processes that decode for `crops`; 0: the calling one does."""
    classes: tuple[str, ...] = field(init=False)
    labels: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.classes, self.labels = self.files.classes, self.files.labels[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: Tensor, size: int | None = None) -> Tensor:
        """Return uint8 `[B, 3, size, size]` of the whole images `indices`, on the source's device.

        The short side is resized, the long one cropped around its centre; threads decode.

        Raises:
            DataError: about the first image that cannot be read.
        """
        rows = self.rows[indices]
        return decode_files(self.files, rows, size or self.image_size, "decode").to(self.device)

    def crops(self, requests: Iterable[Request]) -> Iterator[tuple[Tensor, ...]]:
        """Yield, request by request, its crops as float [B, 3, size, size] in [0, 1].

        Each worker takes whole requests, two at a time. The workers end with the iterator.

        Raises:
            DataError: about the first image that cannot be read.
            RunError: if a worker dies.
        """
        under_way: deque[Request] = deque()

        def works() -> Iterator[_Work]:
            for request in requests:
                under_way.append(request)
                rows = self.rows[request.rows].tolist()
                paths = [self.files.path(row) for row in rows]
                yield _Work(paths, [_plain(crop) for crop in request.crops])

        results = iter(_loader(works(), self.workers))
        try:
            for result in results:
                if isinstance(result, DataError):
                    raise result
                yield tuple(
                    _finished(result.to(self.device, non_blocking=True), under_way.popleft())
                )
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker (pid"):
                raise
            raise RunError(
                f"a process that decodes images has died ({str(error).rstrip('. ')}); mostly the "
                "memory or /dev/shm was full: lower dataset.workers or the batch, then run the "
                "same command again"
            ) from error
        finally:
            del results  # This ends the workers, also while a traceback keeps the frame alive.


def default_workers() -> int:
    """One for each CPU core that this process has to itself, within reason."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(max((os.cpu_count() or 1) // processes, 1), MOST_WORKERS)


class _PlainCrop(NamedTuple):
    """A CropDraw without tensors, each of which would cost a file descriptor on its way."""

    size: int
    scale: tuple[float, float]
    uniforms: np.ndarray
    flip: np.ndarray

    def rows(self, first: int, last: int) -> CropDraw:
        """The draws of some of the images."""
        uniforms, flip = self.uniforms[:, first:last], self.flip[first:last]
        return CropDraw(self.size, self.scale, torch.from_numpy(uniforms), torch.from_numpy(flip))


class _Work(NamedTuple):
    """A request as it is sent to a worker."""

    paths: list[str]
    crops: list[_PlainCrop]


class _Cutter(Dataset[Any]):
    """What a DataLoader takes for a data set: it does work instead of looking up an index."""

    def __getitem__(self, work: _Work) -> Tensor | DataError:
        # Raised in a worker, the error would arrive with the text of a traceback.
        try:
            with bombs_refused():
                return _cut(work)
        except DataError as error:
            return error


def _loader(works: Iterable[_Work], workers: int) -> DataLoader[Any]:
    # Forked, a worker starts at once and shares all memory; elsewhere forking is not safe.
    fork = "fork" if workers and sys.platform == "linux" else None
    return DataLoader(
        _Cutter(),
        batch_size=None,
        sampler=works,
        collate_fn=_unchanged,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        multiprocessing_context=fork,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # Otherwise it would draw from the global one.
    )


def _cut(work: _Work) -> Tensor:
    """Make the crops of a request: uint8, kind after kind, in one flat tensor."""
    count = len(work.paths)
    flat = torch.empty(sum(3 * count * crop.size**2 for crop in work.crops), dtype=torch.uint8)
    kinds = [part.numpy() for part in _kinds(flat, count, work.crops)]
    first = 0
    for images in _decoded(work.paths):
        last = first + len(images)
        sizes = torch.tensor([[image.height, image.width] for image in images])
        for crop, made in zip(work.crops, kinds, strict=True):
            boxes = crop.rows(first, last).boxes(sizes).tolist()
            for row, (image, box) in enumerate(zip(images, boxes, strict=True), first):
                made[row] = _resized(image, box, crop.size)
        first = last
    return flat


def _kinds(flat: Tensor, count: int, crops: Sequence[_PlainCrop | CropDraw]) -> list[Tensor]:
    """The crops of each kind, [count, 3, size, size], in the tensor that holds them all."""
    parts = flat.split([3 * count * crop.size**2 for crop in crops])
    return [
        part.view(count, 3, crop.size, crop.size) for part, crop in zip(parts, crops, strict=True)
    ]


def _decoded(paths: list[str]) -> Iterator[list[Image.Image]]:
    """Yield the images in groups: few enough pixels at a time, and boxes for many at once."""
    group: list[Image.Image] = []
    pixels = 0
    for path in paths:
        group.append(read_rgb(path))
        pixels += group[-1].width * group[-1].height
        if pixels >= PIXELS_AT_ONCE:
            yield group
            group, pixels = [], 0
    if group:
        yield group


def _resized(image: Image.Image, box: list[int], size: int) -> np.ndarray:
    """Return a box (top, left, height, width) of an image as uint8 [3, size, size]."""
    top, left, height, width = box
    # Cut first: given as an argument of `resize`, the box would take in pixels beside it.
    cut = image.crop((left, top, left + width, top + height))
    resized = cut.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized).transpose(2, 0, 1)


def _finished(flat: Tensor, request: Request) -> Iterator[Tensor]:
    for crop, made in zip(
        request.crops, _kinds(flat, len(request.rows), request.crops), strict=True
    ):
        flipped = crop.flip.nonzero().flatten().to(made.device)
        made.index_copy_(0, flipped, made[flipped].flip(3))  # As bytes, a quarter of the work.
        yield made.float().div_(255)


def _plain(crop: CropDraw) -> _PlainCrop:
    return _PlainCrop(crop.size, crop.scale, crop.uniforms.numpy(), crop.flip.numpy())


def _unchanged(result: Any) -> Any:
    return result


def _begin_worker(_: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this a worker of a killed process would live, and hold its locks, for seconds."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
