"""Held-out loss at fixed noise levels with fixed noise: the same number on every machine and for any split."""

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
        """`sigmas` (S,): the noise levels; noise of example i depends on (seed, i) alone."""
        self.sigmas, self.seed = list(sigmas), seed
        self.reset(torch.device("cpu"))

    def reset(self, device: torch.device) -> None:
        """Forgets all examples; sums live on `device`."""
        self.sums = torch.zeros(len(self.sigmas), dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, loss: TrainingLoss, denoiser: Denoiser, batch: Batch, indices: Sequence[int]) -> None:
        """Adds the examples `batch`, number `indices` of the held-out data."""
        noise = SampleSeeds(self.seed, indices).normal("heldout", batch.x.shape[1:], batch.x.device)
        for i, sigma in enumerate(self.sigmas):
            levels = torch.full((len(batch.x),), sigma, device=batch.x.device)
            self.sums[i] += loss.at(denoiser, batch.x, batch.condition, levels, noise).error.double().sum()
        self.count += len(batch.x)

    def compute(self) -> dict[str, float]:
        """Mean error by noise level over all processes; nothing if there were no examples."""
        *sums, count = all_reduce_sum(torch.cat([self.sums, self.count[None]])).tolist()
        if not count:
            return {}
        return {f"sigma_{sigma:g}": total / count for sigma, total in zip(self.sigmas, sums, strict=True)}
