"""The device of a process, and copies to one that do not make the host wait."""

from __future__ import annotations

import os

import torch
from torch import Tensor

__all__ = ["choose_device", "to_device"]


def choose_device(name: str | None = None) -> torch.device:
    """Return the device `name`; None: the GPU of this process, `LOCAL_RANK` of a launcher, or the CPU without one.

    Raises:
        ValueError: if there is no such device.

    Examples:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    chosen = name or own
    try:
        return torch.empty(0, device=chosen).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {chosen!r}, which is not available: {str(error).splitlines()[0]}") from None


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
