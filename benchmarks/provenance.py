"""Where and with what a result came to be, without the folders of whoever measured it."""

import shlex
import sys
from typing import Any

import torch
from record import without_folder

from scdd.config.run import RunConfig
from scdd.run import environment


def measured_on(device: torch.device, threads: int | None = None) -> dict[str, Any]:
    """Hardware, versions and command; `threads` of the CPU, if not those of torch."""
    about = environment(str(device), threads or torch.get_num_threads())
    about["command"] = shlex.join(map(without_folder, sys.argv))
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    return about


def without_paths(cfg: RunConfig) -> dict[str, Any]:
    """The configuration, with the last part of the folders of images only."""
    config = cfg.model_dump(mode="json")
    for key in ("dataset", "squeeze_dataset"):
        if config[key] is not None:
            config[key]["root"] = without_folder(config[key]["root"] or "") or None
    return config
