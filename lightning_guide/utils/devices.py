"""Copies from the host to a device that does not make the host wait."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["to_device"]


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """Return `x` on `device`; the host does not wait until the device has done all it was given before.

    For that a tensor of the host is copied to pinned memory first: CUDA waits before it reads memory that may move.

    Examples:
        >>> to_device(torch.arange(3), "cpu").tolist()
        [0, 1, 2]
    """
    target = torch.device(device)
    if x.device.type != "cpu" or target.type in ("cpu", "mps", "meta"):
        return x.to(target)
    return x.pin_memory().to(target, non_blocking=True)
