"""Class mix of a synthetic set, and the mix that moves guided samples to target class shares.

Extrapolating away from a model of the synthetic set aims at p ~ p_base^(1 + omega) p_aux^(-omega), so classes that are
too frequent in the synthetic set become rarer (SIMS, https://arxiv.org/abs/2408.16333): class shares a of the base and
b of the synthetic set turn into about a^(1 + omega) b^(-omega), normalized.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from datamodules.stream import epoch_order
from lightning_guide.data import Batch

__all__ = ["ClassMix", "class_labels", "class_shares", "mix_against"]


ClassMix = Literal["equal", "data"] | list[float]


def class_shares(classes: ClassMix, num_classes: int, data: Iterable[Batch]) -> Tensor:
    """Return class shares, float64 (num_classes,): equal, those of the labels in `data`, or as given, normalized.

    Raises:
        ValueError: unless given shares are `num_classes` numbers >= 0, not all 0; if the data have no labels.
    """
    if classes == "equal":
        return torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
    if classes == "data":
        counts = torch.zeros(num_classes, dtype=torch.float64)
        for batch in data:
            if batch.condition is None:
                raise ValueError("classes: data needs data with labels; expected equal or one share for each class")
            labels = batch.condition.cpu()
            counts += torch.bincount(labels[labels >= 0], minlength=num_classes)
        if not counts.sum():
            raise ValueError("classes: data needs data with labels; expected equal or one share for each class")
        return counts / counts.sum()
    shares = torch.tensor(classes, dtype=torch.float64)
    if len(shares) != num_classes or not bool((shares >= 0).all() & shares.isfinite().all()) or not shares.sum() > 0:
        raise ValueError(
            f"classes are the shares {classes}; expected {num_classes} numbers >= 0, one for each class, not all 0"
        )
    return shares / shares.sum()


def class_labels(shares: Tensor, count: int, *, seed: int) -> Tensor:
    """Return labels (count,), int64, in an order drawn from `seed`; class counts match the shares to less than one.

    Counts are rounded down, and the rest goes to the largest remainders.

    Examples:
        >>> class_labels(torch.tensor([0.5, 0.2, 0.3]), 7, seed=0).bincount().tolist()
        [4, 1, 2]
    """
    exact = shares * count
    counts = (exact + 1e-9).floor().to(torch.int64)
    left = count - int(counts.sum())
    counts[(exact - counts).argsort(descending=True, stable=True)[:left]] += 1
    return torch.arange(len(shares)).repeat_interleave(counts)[epoch_order(seed, 0, count)]


def mix_against(target: Sequence[float], base: Sequence[float], *, omega: float) -> list[float]:
    """Return the mix b of a synthetic set that moves shares a of `base` to q of `target`: b ~ a (a / q)^(1 / omega).

    For two classes: logit(b) = logit(a) + (logit(a) - logit(q)) / omega. A first guess, exact to first order in the
    shift: for a target of 0.8 in place of 0.5 at omega = 1, the exact flow between two separate modes reaches 0.73.

    Examples:
        >>> [round(share, 6) for share in mix_against([0.8, 0.2], [0.5, 0.5], omega=1.0)]
        [0.2, 0.8]

    Raises:
        ValueError: if a share is not positive, the numbers of shares differ, or omega is not positive.
    """
    if len(target) != len(base) or min(*target, *base) <= 0 or not omega > 0:
        raise ValueError(
            f"a mix needs omega > 0 and as many positive shares in target and base, got omega={omega}, "
            f"{list(target)} and {list(base)}"
        )
    a, q = (torch.tensor(shares, dtype=torch.float64) for shares in (base, target))
    a, q = a / a.sum(), q / q.sum()
    b = a * (a / q) ** (1 / omega)
    return (b / b.sum()).tolist()
