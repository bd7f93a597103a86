"""torch.compile where it pays: whether there is work enough, and what to do where it fails."""

import time
from collections.abc import Callable
from typing import TypeVar

import torch

from scdd.errors import RunError
from scdd.progress import say

WORTH_COMPILING = {"cpu": 2e14, "cuda": 3e15}
"""FLOPs of a step, by kind of device, above which compiling (about a minute) is made up for."""
VERSIONS = 256
"""Of a compiled function, in one process."""

F = TypeVar("F", bound=Callable[..., object])


def is_worth_compiling(choice: str, flops: float, device: torch.device) -> bool:
    """What `auto`, `on` or `off` means for so many FLOPs on a device."""
    if choice != "auto":
        return choice == "on"
    return flops >= WORTH_COMPILING.get(device.type, float("inf"))


def compiled_or_plain(
    function: F,
    attempt: Callable[[F], object],
    step: str,
    insists: bool,
    mode: str | None = None,
) -> F:
    """Compile a function in one graph a shape, and try it out.

    Where that fails, as without a C++ compiler, the function itself is returned, saying so.

    Args:
        function: what to compile.
        attempt: calls what it is given as it will be called, so that compiling ends here.
        step: whose setting `compile` decides.
        insists: whether that is `on`.
        mode: of torch.compile.

    Raises:
        RunError: if it fails and the configuration insists on it.
    """
    fast = torch.compile(function, fullgraph=True, dynamic=False, mode=mode)
    started = time.monotonic()
    try:
        # Every network and size is one more version of the same code, of which torch makes eight;
        # with fullgraph it then gives up.
        with torch._dynamo.config.patch(cache_size_limit=VERSIONS):
            attempt(fast)  # type: ignore[arg-type]
    except (torch.OutOfMemoryError, MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if insists:
            raise RunError(
                f"{step}: torch.compile cannot compile the network ({reason}); set "
                f"{step}.compile=auto to go on without"
            ) from error
        say(f"  torch.compile failed ({reason}); going on without")
        return function
    say(f"  compiled in {time.monotonic() - started:.0f} s")
    return fast  # type: ignore[return-value]
