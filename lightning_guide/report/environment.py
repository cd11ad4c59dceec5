"""What a run ran on: versions, processors, threads."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

__all__ = ["environment"]

_PACKAGES = ("lightning-guide", "torch", "torchvision", "lightning", "torchmetrics", "timm", "open_clip_torch", "numpy")


def environment() -> dict[str, str]:
    """Facts by name; nothing that names a machine, a user or a path."""
    facts = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts | {"cpu threads": str(torch.get_num_threads()), "gpus": ", ".join(gpus) or "none"}
