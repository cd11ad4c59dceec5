"""Replay weights w_{k,i}: shares of earlier rounds and of pre-training data in the fine-tuning after round k.

Guo et al. 2024, https://arxiv.org/abs/2404.14743, algorithm 2: round k minimizes
(1 - sum_i w_{k,i}) L(D_0) + sum_{i <= k} w_{k,i} L(D_i), D_0 the pre-training data and D_i the samples of round i.
The loss is estimated on batches in which the share of D_i is w_{k,i}.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_guide.conditioning import drop_condition, pad_tokens
from lightning_guide.data import Batch, Prompts
from lightning_guide.denoiser import expand
from lightning_guide.utils.devices import to_device

__all__ = ["GeometricReplay", "LatestOnly", "Replay", "UniformReplay", "mixture"]


class Replay(ABC):
    """A rule for the weights of the rounds."""

    @abstractmethod
    def weights(self, rounds: int) -> list[float]:
        """Return w of each of `rounds` rounds, oldest first; the rest to 1 is the share of the pre-training data."""


class GeometricReplay(Replay):
    """Geometric weights w_{k,i} = (1 - p) g (1 - g)^(k - i).

    Except for the share p, the mean of the data follows mu <- (1 - g) mu + g z.

    Examples:
        >>> GeometricReplay(0.5).weights(3)
        [0.125, 0.25, 0.5]
    """

    def __init__(self, weight: float = 0.5, *, pretraining: float = 0.0) -> None:
        """Set the `weight` g of the newest round and the constant share p of the pre-training data, `pretraining`.

        Raises:
            ValueError: unless 0 < g <= 1 and 0 <= p < 1.
        """
        if not (0 < weight <= 1 and 0 <= pretraining < 1):
            expected = "GeometricReplay needs 0 < weight <= 1 and 0 <= pretraining < 1"
            raise ValueError(f"{expected}, got {weight} and {pretraining}")
        self.weight, self.pretraining = weight, pretraining

    def weights(self, rounds: int) -> list[float]:
        """Return w of each round."""
        ages = range(rounds - 1, -1, -1)
        return [(1 - self.pretraining) * self.weight * (1 - self.weight) ** age for age in ages]


class UniformReplay(Replay):
    """Uniform weights w_{k,i} = (1 - p) / k."""

    def __init__(self, *, pretraining: float = 0.5) -> None:
        """Set the share p of the pre-training data, `pretraining`.

        Raises:
            ValueError: unless 0 <= p < 1.
        """
        if not 0 <= pretraining < 1:
            raise ValueError(f"UniformReplay needs 0 <= pretraining < 1, got {pretraining}")
        self.pretraining = pretraining

    def weights(self, rounds: int) -> list[float]:
        """Return w of each round."""
        return [(1 - self.pretraining) / rounds] * rounds


class LatestOnly(Replay):
    """Weight 1 for the newest round and 0 for all else, as in the published code. Drifts off the support."""

    def weights(self, rounds: int) -> list[float]:
        """Return w of each round."""
        return [0.0] * (rounds - 1) + [1.0]


def mixture(
    batch: Batch,
    replay: Tensor,
    labels: Tensor | None,
    weights: list[float],
    generator: torch.Generator,
    *,
    prompts: Prompts | None = None,
) -> Batch:
    """Return `batch` (B rows) of pre-training data with rows replaced so that round i has the share `weights[i]`.

    `replay` (k, n, *) holds the samples of the k rounds, `labels` (k, n) their labels, or their numbers among the
    `prompts` of a model conditioned on embeddings. Rows are drawn by systematic
    sampling, with one uniform draw for the whole batch: each sample of round i occurs B w_i / n times, rounded up or
    down, so that the shares of a batch are exact to one row. The first rows remain pre-training data.
    """
    rounds, size = replay.shape[:2]
    share = torch.tensor(weights, dtype=torch.float64) / size
    pretraining = 1 - torch.tensor([sum(weights)], dtype=torch.float64)
    cumulative = torch.cat([pretraining, share.repeat_interleave(size)]).cumsum(0)
    offset = torch.rand((), generator=generator, device=generator.device).double().cpu()
    positions = (torch.arange(len(batch.x)) + offset) / len(batch.x)
    chosen = torch.searchsorted(cumulative, positions, right=True).clamp(max=rounds * size)  # 0: kept, j: sample j - 1
    device, rows = batch.x.device, (chosen - 1).clamp(min=0)
    replaced = to_device(chosen > 0, device)
    replayed = to_device(replay.flatten(0, 1)[rows], device).to(batch.x)
    x = torch.where(expand(replaced, batch.x), replayed, batch.x)
    if batch.condition is None or labels is None:
        return Batch(x, batch.condition)
    numbers, condition = labels.flatten()[rows], batch.condition
    if prompts is None:
        return Batch(x, torch.where(replaced, to_device(numbers, device), condition))
    tokens = to_device(drop_condition(prompts[numbers.clamp(min=0)], numbers < 0), device).to(condition)
    length = max(tokens.shape[1], condition.shape[1])
    tokens, condition = pad_tokens(tokens, length), pad_tokens(condition, length)
    return Batch(x, torch.where(replaced[:, None, None], tokens, condition))
