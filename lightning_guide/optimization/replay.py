"""Replay weights w_{k,i}: what fine-tuning after round k learns from, earlier rounds and pre-training data.

Guo et al. 2024, https://arxiv.org/abs/2404.14743, algorithm 2: round k minimizes
(1 - sum_i w_{k,i}) L(D_0) + sum_{i <= k} w_{k,i} L(D_i), D_0 the pre-training data and D_i the samples of round i.
The loss is estimated on batches in which the share of D_i is w_{k,i}.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.denoiser import expand

__all__ = ["GeometricReplay", "LatestOnly", "Replay", "UniformReplay", "mixture"]


class Replay(ABC):
    """A rule for the weights of the rounds."""

    @abstractmethod
    def weights(self, rounds: int) -> list[float]:
        """w of each of `rounds` rounds, oldest first; what they lack of 1 is the share of the pre-training data."""


class GeometricReplay(Replay):
    """w_{k,i} = (1 - p) g (1 - g)^(k - i): the mean of the data follows mu <- (1 - g) mu + g z, but for a share p."""

    def __init__(self, weight: float = 0.5, *, pretraining: float = 0.0) -> None:
        """`weight` g of the newest round; `pretraining` p is a share of the pre-training data that never fades.

        Raises:
            ValueError: unless 0 < g <= 1 and 0 <= p < 1.
        """
        if not (0 < weight <= 1 and 0 <= pretraining < 1):
            expected = "GeometricReplay needs 0 < weight <= 1 and 0 <= pretraining < 1"
            raise ValueError(f"{expected}, got {weight} and {pretraining}")
        self.weight, self.pretraining = weight, pretraining

    def weights(self, rounds: int) -> list[float]:
        """w of each round."""
        ages = range(rounds - 1, -1, -1)
        return [(1 - self.pretraining) * self.weight * (1 - self.weight) ** age for age in ages]


class UniformReplay(Replay):
    """w_{k,i} = (1 - p) / k: all rounds alike."""

    def __init__(self, *, pretraining: float = 0.5) -> None:
        """`pretraining` p is the share of the pre-training data.

        Raises:
            ValueError: unless 0 <= p < 1.
        """
        if not 0 <= pretraining < 1:
            raise ValueError(f"UniformReplay needs 0 <= pretraining < 1, got {pretraining}")
        self.pretraining = pretraining

    def weights(self, rounds: int) -> list[float]:
        """w of each round."""
        return [(1 - self.pretraining) / rounds] * rounds


class LatestOnly(Replay):
    """w = 1 for the newest round, 0 for all else: what the published code does. Drifts off the support."""

    def weights(self, rounds: int) -> list[float]:
        """w of each round."""
        return [0.0] * (rounds - 1) + [1.0]


def mixture(
    batch: Batch, replay: Tensor, labels: Tensor | None, weights: list[float], generator: torch.Generator
) -> Batch:
    """`batch` (B rows) of pre-training data with rows replaced so that round i makes up the share `weights[i]`.

    `replay` (k, n, *) holds the samples of the k rounds, `labels` (k, n) theirs. Rows are drawn by systematic sampling,
    one uniform draw for the whole batch: each sample of round i comes B w_i / n times, rounded up or down, so that the
    shares of a batch are exact to one row. The first rows stay pre-training data.
    """
    rounds, size = replay.shape[:2]
    share = torch.tensor(weights, dtype=torch.float64) / size
    heads = torch.cat([1 - torch.tensor([sum(weights)], dtype=torch.float64), share.repeat_interleave(size)]).cumsum(0)
    offset = torch.rand((), generator=generator, device=generator.device).double().cpu()
    places = (torch.arange(len(batch.x)) + offset) / len(batch.x)
    chosen = torch.searchsorted(heads, places, right=True).clamp(max=rounds * size)  # 0: stays, j: sample j - 1
    device, rows = batch.x.device, (chosen - 1).clamp(min=0)
    mine = (chosen > 0).to(device)
    found = replay.flatten(0, 1)[rows].to(batch.x)
    x = torch.where(expand(mine, batch.x), found, batch.x)
    if batch.condition is None or labels is None:
        return Batch(x, batch.condition)
    return Batch(x, torch.where(mine, labels.flatten()[rows].to(device), batch.condition))
