"""The labeled ones among generated samples."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_guide.utils.devices import to_device

__all__ = ["labeled_samples"]


def labeled_samples(
    x: Tensor, condition: Tensor, *, device: torch.device, limit: int, what: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the samples of `x` (B, *) with a label, on `device`, and on the host their labels (n,) and rows (n,).

    Raises:
        ValueError: if a label is not below `limit`, with the sentence "`what`, and none for class ...".

    Examples:
        >>> x, labels, rows = labeled_samples(
        ...     torch.arange(3), torch.tensor([1, -1, 0]), device=torch.device("cpu"), limit=2, what="2 classes"
        ... )
        >>> x.tolist(), labels.tolist(), rows.tolist()
        ([0, 2], [1, 0], [0, 2])
    """
    labels = condition.cpu()  # waits once a batch: rows are chosen on the host
    rows = (labels >= 0).nonzero()[:, 0]
    labels = labels[rows]
    if bool((labels >= limit).any()):
        raise ValueError(f"{what}, and none for class {int(labels.max())}")
    return x.to(device)[to_device(rows, device)], labels, rows
