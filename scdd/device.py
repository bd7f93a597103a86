"""Which device a command runs on."""

import torch

from scdd.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda:1`, `mps` ... into a device that this machine has.

    Raises:
        ConfigError: if the name is unknown or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # `meta` makes tensors, but none with a value
    except (RuntimeError, AssertionError, ImportError) as error:
        have = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ConfigError(
            f"--device {name}: cannot be used on this machine; it has {', '.join(have)}"
        ) from error
    return device


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether a `precision` of auto, fp32 or bf16 means bf16 on this device."""
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")
