"""Weights as safetensors, and the rolling checkpoint of a loop that may be killed."""

import io
import json
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from scdd.deadline import Deadline
from scdd.errors import CheckpointError
from scdd.files import replacing


def save_weights(path: Path, weights: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors by name, with `about` (anything JSON can hold) as metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    # As bytes first: on a full disk safetensors raises an error of its own, Python an OSError.
    data = save(tensors, metadata={"scdd": json.dumps(about)})
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_weights` wrote.

    Raises:
        CheckpointError: if the file is missing, truncated or not of this suite.
    """
    weights, about = read_safetensors(path, "make it again with --redo")
    if about is None:
        raise CheckpointError(f"{path}: holds no scdd metadata; give a file that scdd wrote")
    return weights, about


def read_safetensors(path: Path, remedy: str) -> tuple[dict[str, Tensor], Any]:
    """Read tensors by name, and what scdd wrote beside them: None in a file of others.

    Raises:
        CheckpointError: ending in `remedy`, if the file is missing, truncated or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return weights, json.loads(metadata["scdd"]) if "scdd" in metadata else None
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as safetensors ({error}); {remedy}"
        ) from error


def fill(model: nn.Module, weights: dict[str, Tensor], origin: Path) -> nn.Module:
    """Load every weight of `model`, and nothing else, from `weights`; return the model.

    Raises:
        CheckpointError: naming the first missing, unexpected or misshapen weight.
    """
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in weights:
            raise CheckpointError(f"{origin}: weight '{name}' is missing; is it another network?")
        if weights[name].shape != tensor.shape:
            raise CheckpointError(
                f"{origin}: weight '{name}' has shape {list(weights[name].shape)}, the network "
                f"wants {list(tensor.shape)}; is it for another architecture or class count?"
            )
    extra = sorted(set(weights) - set(own))
    if extra:
        raise CheckpointError(f"{origin}: weight '{extra[0]}' has no place in the network")
    model.load_state_dict(weights)
    return model


def load_checked(path: Path | io.BytesIO) -> Any:
    """Read a file of torch.save, or its bytes, if it holds data alone, with its checksums.

    torch itself reads past a flipped bit.

    Raises:
        zipfile.BadZipFile or one of DAMAGED: if the file is damaged, or would run code.
    """
    with path.open("rb") if isinstance(path, Path) else path as file:
        if zipfile.is_zipfile(file):
            file.seek(0)
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"{damaged} is damaged")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


DAMAGED = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    UnpicklingError,
    zipfile.BadZipFile,
)
"""What torch.load raises for a damaged file, depending on where the damage is."""


class Checkpoint:
    """The state of a loop, saved every `minutes`, so that a kill loses no more than that.

    With a deadline it is saved once more before the time is over, and the loop left.
    """

    def __init__(self, path: Path | None, minutes: float, deadline: Deadline | None = None) -> None:
        self.path, self.seconds, self.deadline = path, 60 * minutes, deadline
        self._saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or None at a fresh start."""
        if self.path is None or not self.path.exists():
            return None
        try:
            return load_checked(self.path)
        except DAMAGED as error:
            raise CheckpointError(
                f"{self.path}: the checkpoint is damaged; delete it to start this step again"
            ) from error

    @property
    def due(self) -> bool:
        """Whether it is time to save; to be asked wherever the loop can be gone on with."""
        if self.path is None:
            return False
        if self.deadline is not None and self.deadline.near():
            return True
        return time.monotonic() - self._saved >= self.seconds

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state.

        Raises:
            OutOfTime: after that, if the time that was given is over.
        """
        assert self.path is not None
        started = time.monotonic()
        # As bytes first: on a full disk torch raises an error of its own, Python an OSError.
        data = io.BytesIO()
        torch.save(state, data)
        with replacing(self.path) as temporary:
            temporary.write_bytes(data.getbuffer())
        self._saved = time.monotonic()
        if self.deadline is not None:
            self.deadline.saved(self._saved - started)

    def restore(self, parts: Mapping[str, Any], count: str = "step") -> int:
        """Set `parts` back to what `save_parts` saved; return how many steps are done, or 0.

        Args:
            parts: what is trained (networks, an optimiser), by name.
            count: what is counted, and so the name of the number in the file.
        """
        state = self.load()
        if state is None:
            return 0
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return int(state[count])

    def save_parts(self, parts: Mapping[str, Any], done: int, count: str = "step") -> None:
        """Replace the saved state by that of all `parts` after `done` steps; raises as `save`."""
        self.save({count: done, **{name: part.state_dict() for name, part in parts.items()}})

    def remove(self) -> None:
        """Forget the state: the loop is finished and its result is safe."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


NO_CHECKPOINT = Checkpoint(None, 0)
"""For loops that nobody will resume."""
