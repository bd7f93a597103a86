"""A step recorded as a CUDA graph: its kernels are launched at once, which small steps wait for."""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scdd.config.posttrain import PosttrainConfig
from scdd.distilled import Batch
from scdd.errors import ConfigError, RunError
from scdd.posttraining.sharing import mapped
from scdd.posttraining.step import Step
from scdd.progress import say

WARM_UP = 3
"""Steps of a shape before it is recorded; they load kernels and make the optimiser's state."""
GRAPHS = 4
"""Most shapes that are recorded: each keeps the memory of a step for itself."""

Work = Callable[[], Tensor]


def can_capture(cfg: PosttrainConfig, student: nn.Module, images: Tensor, changed: bool) -> bool:
    """Whether the steps of a student are to be recorded; says so, once, where they cannot be.

    Args:
        images: two images as the student will see them, on its device.
        changed: whether others have a hand in the step: a hook, or other processes.

    Raises:
        ConfigError: if the configuration insists.
    """
    if cfg.capture == "off" or (cfg.capture == "auto" and images.device.type != "cuda"):
        return False
    if images.device.type != "cuda":
        reason = f"there is none on the device '{images.device}'"
    elif changed:
        reason = "its gradients are summed over processes or changed by others"
    elif draws_numbers(student, images):
        reason = "it draws random numbers, as dropout does"
    else:
        return True
    if cfg.capture == "on":
        raise ConfigError(
            f"posttrain.capture is on, but the step of {cfg.arch} cannot be a CUDA graph: "
            f"{reason}; set posttrain.capture=auto"
        )
    _say_once(f"  {cfg.arch}: the step is not recorded as a CUDA graph; {reason}")
    return False


def draws_numbers(student: nn.Module, images: Tensor) -> bool:
    """Whether the net draws random numbers in train mode; net and generators stay as they are."""
    devices = [images.device] if images.device.type == "cuda" else []

    def states() -> Tensor:
        return torch.cat([torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)])

    with torch.random.fork_rng(devices), torch.no_grad():
        before = states()
        copy.deepcopy(student).train()(images)
        return not torch.equal(before, states())


def make_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Keep on the device what an update needs and changes: rates, and counts of steps."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
        group["fused"] = True  # SGD would otherwise read the rate back to the host.
        if "capturable" in group:
            group["capturable"] = True


@dataclass
class _Recording:
    """The steps of one shape: tensors that their batches are copied into, and the graph."""

    batches: list[Batch]
    steps: int = 0
    replay: Work | None = None


def captured(
    step: Step,
    insist: bool = False,
    warm_up: Callable[[Work], Tensor] | None = None,
    record: Callable[[Work], Work] | None = None,
) -> Step:
    """Return a step that does the same as `step`, as a CUDA graph once a shape has come often.

    What it returns lies where the next step of the same shape will write.

    Args:
        step: all that it changes must lie on the device and stay where it is.
        insist: stop where recording fails, instead of going on without.
        warm_up: runs a step before it is recorded; not given: on a stream of its own.
        record: makes of a step what repeats it; not given: a CUDA graph.

    Raises:
        RunError: from the step, if recording fails and `insist`.
    """
    warm_up, record = warm_up or _on_side_stream, record or _as_graph
    found: dict[tuple[torch.Size, ...], _Recording] = {}
    failed = False

    def run(batches: Sequence[Batch]) -> Tensor:
        nonlocal failed
        shapes = tuple(batch.images.shape for batch in batches)
        if failed or (shapes not in found and len(found) == GRAPHS):
            return step(batches)
        if shapes not in found:
            found[shapes] = _Recording([mapped(batch, torch.clone) for batch in batches])
        recording = found[shapes]
        for fixed, given in zip(recording.batches, batches, strict=True):
            _copy(fixed, given)

        def work() -> Tensor:
            return step(recording.batches)

        with torch.cuda.device_of(batches[0].images):
            if recording.steps < WARM_UP:
                recording.steps += 1
                return warm_up(work)
            try:
                recording.replay = recording.replay or record(work)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                failed = True
                found.clear()
                _refused(error, insist)
                return step(batches)
            return recording.replay()

    return run


def _refused(error: RuntimeError, insist: bool) -> None:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    sentence = f"the step cannot be recorded as a CUDA graph ({reason})"
    if insist:
        raise RunError(
            f"posttrain: {sentence}; set posttrain.capture=off to go on without"
        ) from error
    _say_once(f"  {sentence}")


def _copy(fixed: Batch, given: Batch) -> None:
    for name in vars(fixed):
        target, source = getattr(fixed, name), getattr(given, name)
        if isinstance(target, Tensor):
            target.copy_(source)


def _on_side_stream(work: Work) -> Tensor:
    """Run on the stream that recording will use, which waits for the main one and is waited for."""
    main, side = torch.cuda.current_stream(), _side_stream(torch.cuda.current_device())
    side.wait_stream(main)
    with torch.cuda.stream(side):
        result = work()
    main.wait_stream(side)
    return result


def _as_graph(work: Work) -> Work:
    """Record `work`, which runs none of it, and return what runs it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=_side_stream(torch.cuda.current_device())):
        result = work()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


@functools.cache
def _side_stream(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@functools.cache
def _say_once(line: str) -> None:
    say(line)
