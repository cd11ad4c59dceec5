"""Class labels as network input: one-hot rows, a zero row for "no condition", and a check that costs no sync."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["one_hot"]


def one_hot(condition: Tensor | None, num_classes: int, *, batch: int, like: Tensor) -> Tensor:
    """One-hot rows `(batch, num_classes)` of the labels `condition` (batch,), in dtype and device of `like`.

    The label -1, and None for the whole batch, give rows of zeros. On CUDA devices and inside compiled code the range
    is asserted on the device, without waiting for it.

    Raises:
        ValueError: if `condition` is not integers of shape (batch,), or holds a label outside -1 ... num_classes - 1.
    """
    if condition is None:
        return like.new_zeros(batch, num_classes)
    if condition.shape != (batch,) or condition.is_floating_point() or condition.dtype == torch.bool:
        raise ValueError(
            f"class labels have shape {tuple(condition.shape)} and type {condition.dtype}; "
            f"expected integers of shape ({batch},), one label for each sample"
        )
    if not condition.is_meta:
        _check_range(condition, num_classes)
    classes = torch.arange(num_classes, device=condition.device)
    return (condition[:, None] == classes).to(device=like.device, dtype=like.dtype)


def _check_range(condition: Tensor, num_classes: int) -> None:
    """Refuses labels outside -1 ... num_classes - 1."""
    valid = (condition >= -1) & (condition < num_classes)
    if condition.is_cuda or torch.compiler.is_compiling():
        torch._assert_async(valid.all(), f"class label outside -1 ... {num_classes - 1} (-1 is no condition)")
    elif not valid.all():
        value = condition[~valid][0].item()
        raise ValueError(
            f"class label {value} is out of range; "
            f"this network knows labels 0 to {num_classes - 1}, and -1 for no condition"
        )
