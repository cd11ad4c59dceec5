"""Brownian paths of samples, as functions of their seeds: the same path at whatever noise levels it is asked for.

Brownian bridges on dyadic intervals (Levy's construction, as the tree of Li et al. 2020,
https://arxiv.org/abs/2001.01328).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_guide.seeds import SampleSeeds

__all__ = ["BrownianPath"]

DEPTH = 10  # halvings of an octave of noise levels


class BrownianPath:
    """B(s) of each sample, standard Brownian motion in s = 1 / sigma^2, the time of the reverse SDE.

    With y = x / sigma^2 the reverse SDE of DDPM is dy = D ds + dB(s) (stochastic localization), so that the fresh noise
    of any step is an increment of B. The increment over an octave of sigma is one draw. Inside it the path is a
    Brownian bridge, halved in ln sigma `DEPTH` times and linear in between, so that the variance of an increment over a
    tenth of an octave is at most 1 % too small. All draws belong to (seed, sample, number of the path, place in the
    tree).

    Examples:
        >>> path = BrownianPath(SampleSeeds(0, range(2)), (3,))
        >>> increment = path.inside(0.7) - path.inside(5.0) + path.octaves(5.0, 0.7)  # B(1 / 0.49) - B(1 / 25)
    """

    def __init__(
        self, seeds: SampleSeeds, shape: Sequence[int], device: torch.device | str = "cpu", *, number: int = 0
    ) -> None:
        """Start the paths of the samples `seeds`, each of `shape`; those of another `number` are independent."""
        self.seeds, self.shape, self.device, self.number = seeds, tuple(shape), device, number

    def octaves(self, sigma: float, sigma_next: float) -> Tensor:
        """Return the increment of B from the beginning of the octave of `sigma` to that of `sigma_next`."""
        octaves = range(math.floor(-math.log2(sigma)), math.floor(-math.log2(sigma_next)))
        return sum((self._octave(each) for each in octaves), torch.zeros((), device=self.device))

    def inside(self, sigma: float) -> Tensor:
        """Return the increment of B from the beginning of the octave of `sigma` to `sigma`, (B, *shape)."""
        octave = math.floor(-math.log2(sigma))
        fraction, low, high = -math.log2(sigma) - octave, 0.0, 1.0
        right = self._octave(octave)
        left = torch.zeros_like(right)
        for _ in range(DEPTH):
            middle = (low + high) / 2
            a, b, c = (_time(octave + each) for each in (low, middle, high))
            spread = math.sqrt((b - a) * (c - b) / (c - a))
            value = torch.lerp(left, right, (b - a) / (c - a)).add_(self._draw(f"{octave} {middle}"), alpha=spread)
            if fraction >= middle:
                low, left = middle, value
            else:
                high, right = middle, value
        a, b, c = (_time(octave + each) for each in (low, fraction, high))
        return torch.lerp(left, right, (b - a) / (c - a))

    def _octave(self, octave: int) -> Tensor:
        return self._draw(f"{octave}") * math.sqrt(_time(octave + 1) - _time(octave))

    def _draw(self, place: str) -> Tensor:
        fresh = type(self.seeds)(self.seeds.seed, self.seeds.indices)  # at the start of its stream, and not kept
        purpose = f"brownian {place}" if self.number == 0 else f"brownian {self.number} {place}"
        return fresh.normal(purpose, self.shape, self.device)


def _time(octaves: float) -> float:
    """Return s = 1 / sigma^2 at sigma = 2^-octaves."""
    return float(4.0**octaves)
