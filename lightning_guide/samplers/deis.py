"""Diffusion exponential integrator sampler (DEIS). Zhang and Chen 2022, https://arxiv.org/abs/2204.13902.

Derived from its idea, since the paper was not read; equal to the scheduler of diffusers with the same levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.noise import Grid
from lightning_guide.samplers.base import Memory, PredictAt, Sampler, history, remember

__all__ = ["DEIS"]


class DEIS(Sampler):
    r"""DEIS sampler of order 1 to 4: x' = x + \int_sigma^sigma' e(s) ds, N evaluations.

    e is the polynomial in ln s through the noises (x - D) / sigma of the last `order` steps, integrated exactly: where
    `UniPC` and DPM-Solver++ interpolate D, DEIS interpolates the noise, as `PLMS` does with the weights of equal steps.
    The first steps have lower orders, as their history allows, and so have the last ones.

    Examples:
        >>> import torch
        >>> from lightning_guide.distributions.gaussian_mixture import gaussian
        >>> from lightning_guide.seeds import SampleSeeds
        >>> x = torch.tensor([[81.0]], dtype=torch.float64)  # at sigma = 80; the exact solution ends at 1.5
        >>> *_, end = DEIS(32).steps(gaussian([1.0], [[0.25]]), x, seeds=SampleSeeds(0, [0]))
        >>> round(float(end.x), 2), end.evaluations
        (1.5, 32)
    """

    def __init__(self, grid: Grid | int | None = None, *, order: int = 3) -> None:
        """Set the `grid` as in `Sampler`, and the `order`.

        Raises:
            ValueError: if `order` is not 1, 2, 3 or 4.
        """
        super().__init__(grid)
        if order not in (1, 2, 3, 4):
            raise ValueError(f"DEIS has order 1, 2, 3 or 4, got {order}")
        self.order = order

    def step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        """Take one step from `sigma` to `sigma_next`."""
        x = trajectory.x
        prediction = predict(x, sigma)
        remember(memory, "noise", math.log(trajectory.sigma), prediction.direction(x, sigma), kept=self.order)
        times, noises = history(memory, "noise")
        order = min(len(times), trajectory.steps - trajectory.step)
        trajectory.x = prediction.step(x, sigma, sigma)  # x, unless a guidance returns a separate noise direction
        weights = noise_weights(trajectory.sigma_next, times[:order])
        for weight, noise in zip(weights, noises, strict=False):
            trajectory.x = trajectory.x + weight * noise


def noise_weights(sigma_next: float, times: Sequence[float]) -> list[float]:
    r"""Return the weights of the noises at `times` = ln sigma, newest first, in a step to `sigma_next`.

    \sum_j w_j d_j^k = m_k for k = 0, 1, ..., with d_j = times[j] - times[0], h = ln sigma_next - times[0], and
    m_k = \int (ln s - times[0])^k ds = h^k sigma_next - k m_{k-1}, m_0 = sigma_next - sigma.

    Examples:
        >>> h = 0.001  # equal short steps: near -h times 23/12, -16/12 and 5/12, Adams-Bashforth
        >>> [round(w / -h, 2) for w in noise_weights(math.exp(-h), [0.0, h, 2 * h])]
        [1.92, -1.33, 0.42]
    """
    moments = [sigma_next - math.exp(times[0])]
    for k in range(1, len(times)):
        moments.append((math.log(sigma_next) - times[0]) ** k * sigma_next - k * moments[-1])
    powers = [[(t - times[0]) ** k for t in times] for k in range(len(times))]
    return [float(w) for w in np.linalg.solve(powers, moments)]
