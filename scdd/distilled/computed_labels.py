"""Soft labels that are not stored: computed by the teacher, view by view, as they are asked for."""

from pathlib import Path

import torch
from torch import Tensor

from scdd.distilled.format import Header
from scdd.distilled.hdf5 import refuse
from scdd.distilled.labelling import Labellers, label_views, load_labellers, passes
from scdd.distilled.records import ViewRecords
from scdd.files import sha256_of

TEACHER = "teacher.safetensors"
"""Name of the weights beside a file; a path inside the file is never opened."""

KEPT_BYTES = 16 * 2**20
"""Labels that are kept, if a view is not larger."""


class ComputedLabels:
    """The soft labels that the teacher of a file gives to its images.

    May be pickled and forked; every process loads the weights for itself.

    Args:
        path: the file.
        weights: those of its teacher.
        header: of the file.
        images: uint8 [N, 3, S, S], on the device where labels are to be computed.
        records: their views.
    """

    def __init__(
        self, path: Path, weights: Path, header: Header, images: Tensor, records: ViewRecords
    ) -> None:
        self.path, self.weights, self.header = path, weights, header
        self.images, self.records = images, records
        self.weight_bytes = weights.stat().st_size if weights.is_file() else 0
        """0 if they are not there."""
        self._labellers: Labellers | None = None
        self._kept: dict[int, Tensor] = {}

    def first(self, count: int) -> "ComputedLabels":
        """The same labels for fewer images, among which all partners and groups must be."""
        parameters = {name: values[:, :count] for name, values in self.records.parameters.items()}
        records = ViewRecords(self.records.ops, parameters, self.records.padding)
        return ComputedLabels(self.path, self.weights, self.header, self.images[:count], records)

    def view(self, view: int) -> Tensor:
        """Return the labels of one view, float32 [N, C] on the device of the images.

        Raises:
            FormatError: if the weights are not there, or not those that the file records.
            CheckpointError: if they cannot be read.
        """
        if view not in self._kept:
            made = list(
                label_views(
                    self._loaded(),
                    self.images,
                    self.records,
                    view,
                    self.header.mean,
                    self.header.std,
                    self.images.device,
                    passes(self.records, view, len(self.images)),
                )
            )
            order = torch.cat([rows for rows, _ in made]).argsort().to(self.images.device)
            labels = torch.cat([labels for _, labels in made])[order]
            if (len(self._kept) + 1) * labels.nbytes > KEPT_BYTES:
                self._kept.clear()
            self._kept[view] = labels
        return self._kept[view]

    def rows(self, view: int, index: Tensor) -> Tensor:
        """Return labels of one view, float32 [B, C], of the images `index` int64 [B]."""
        return self.view(view)[index.to(self.images.device)]

    def check(self) -> None:
        """Refuse weights that are not there or wrong, before any label is asked for.

        Raises:
            FormatError, CheckpointError: as `view` does.
        """
        self._loaded()

    def _loaded(self) -> Labellers:
        if self._labellers is None:
            check_teacher(self.path, self.weights, self.header)
            grouped = "group" in self.records.parameters
            loaded = load_labellers(self.path, [self.weights], self.header, grouped)
            self._labellers = loaded.to(self.images.device)
        return self._labellers

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_labellers": None, "_kept": {}}


def check_teacher(path: Path, weights: Path, header: Header) -> None:
    """Refuse weights that are not those which compute the labels of the file at `path`.

    Raises:
        FormatError: if they are not there, or others than the file records.
    """
    if not weights.is_file():
        refuse(
            path,
            f"its soft labels are computed by the teacher, but there is no {weights}",
            f"put the run's {TEACHER} beside the file, or train on class labels",
        )
    recorded = (header.teacher or {}).get("weights")
    if sha256_of(weights) != recorded:
        refuse(
            path,
            f"its soft labels are computed by weights of sha256 {str(recorded)[:12]}..., which "
            f"{weights} is not",
            f"put the run's {TEACHER} beside the file",
        )
