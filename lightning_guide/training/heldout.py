"""Held-out loss at fixed noise levels with fixed noise, independent of batch size and number of processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_guide.data import Batch
from lightning_guide.denoiser import Denoiser
from lightning_guide.seeds import SampleSeeds
from lightning_guide.training.losses import TrainingLoss
from lightning_guide.utils.distributed import all_reduce_sum

__all__ = ["HeldoutLoss"]


class HeldoutLoss:
    """Mean error of a denoiser on held-out data for each of a few noise levels."""

    def __init__(self, sigmas: Sequence[float], *, seed: int) -> None:
        """Configure the noise levels `sigmas` (S,); the noise of example i depends only on (seed, i)."""
        self.sigmas, self.seed = list(sigmas), seed
        self.reset(torch.device("cpu"))

    def reset(self, device: torch.device) -> None:
        """Reset the sums, on `device`."""
        self.sums = torch.zeros(len(self.sigmas), dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, loss: TrainingLoss, denoiser: Denoiser, batch: Batch, indices: Sequence[int]) -> None:
        """Add the examples `batch`, whose indices in the held-out data are `indices`."""
        noise = SampleSeeds(self.seed, indices).normal("heldout", batch.x.shape[1:], batch.x.device)
        for i, sigma in enumerate(self.sigmas):
            levels = torch.full((len(batch.x),), sigma, device=batch.x.device)
            self.sums[i] += loss.at(denoiser, batch.x, batch.condition, levels, noise).error.double().sum()
        self.count += len(batch.x)

    def compute(self) -> dict[str, float]:
        """Return the mean error by noise level over all processes; empty without examples."""
        *sums, count = all_reduce_sum(torch.cat([self.sums, self.count[None]])).tolist()
        if not count:
            return {}
        return {f"sigma_{sigma:g}": total / count for sigma, total in zip(self.sigmas, sums, strict=True)}
