"""UniPC and the third-order DPM-Solver++: exponential multistep integrators with an optional corrector.

Zhao et al. 2023, https://arxiv.org/abs/2302.04867 (in the form B(h) = e^h - 1); Lu et al. 2022,
https://arxiv.org/abs/2211.01095.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.noise import Grid
from lightning_guide.samplers.base import Memory, PredictAt, Sampler, history, remember

__all__ = ["DPMSolver3M", "UniPC", "multistep_weights"]


def multistep_weights(h: float, distances: Sequence[float]) -> list[float]:
    r"""Return c_j, the weights of D_j - D_0 in a step of length `h` in ln(1 / sigma); D_j lies at `distances[j]`.

    x' = e^-h x + (1 - e^-h) D_0 + \sum_j c_j (D_j - D_0) integrates the polynomial through all D exactly: for
    k = 1, 2, ... \sum_j c_j d_j^k = m_k, m_k = \int_0^h e^{t - h} t^k dt = h^k - k m_{k-1}. With a single distance d
    the weight is h (1 - e^-h) / (2 d) instead, which has the same order (UniPC; DPM-Solver++(2M)).

    Examples:
        >>> [round(c, 4) for c in multistep_weights(0.1, [0.1])]  # a trapezoid
        [0.0476]
        >>> [round(c, 4) for c in multistep_weights(0.1, [-0.1, -0.2])]  # near h times -16/12 and 5/12: Adams-Bashforth
        [-0.1293, 0.0404]
    """
    if len(distances) == 1:
        return [-math.expm1(-h) * h / (2 * distances[0])]
    moments = [-math.expm1(-h)]
    for k in range(1, len(distances) + 1):
        moments.append(h**k - k * moments[-1])
    powers = [[d**k for d in distances] for k in range(1, len(distances) + 1)]
    return [float(c) for c in np.linalg.solve(powers, moments[1:])] if distances else []


class UniPC(Sampler):
    """UniPC sampler of order 1 to 3: N evaluations, the corrector uses the prediction that the next step needs anyway.

    With h = ln(sigma / sigma') and the clean estimates D_0 (newest), D_1, ... of the last steps, the predictor is
    x' = e^-h x + (1 - e^-h) D_0 + sum_j c_j (D_j - D_0) (`multistep_weights`) with `order` - 1 earlier estimates. The
    corrector takes the same step again when D is known at x', as one more point of the polynomial; D is not evaluated
    there again. The first steps and the last ones have lower orders, as their history and the steps left allow.

    A separate noise direction moves x as in `DPMSolver2M`, to which `UniPC(order=2, corrector=False)` is equal.

    Examples:
        >>> from lightning_guide.distributions.gaussian_mixture import gaussian
        >>> from lightning_guide.seeds import SampleSeeds
        >>> x = torch.tensor([[81.0]], dtype=torch.float64)  # at sigma = 80; the exact solution ends at 1.5
        >>> *_, end = UniPC(32, order=3).steps(gaussian([1.0], [[0.25]]), x, seeds=SampleSeeds(0, [0]))
        >>> round(float(end.x), 2), end.evaluations
        (1.5, 32)
    """

    def __init__(self, grid: Grid | int | None = None, *, order: int = 2, corrector: bool = True) -> None:
        """Set the `grid` as in `Sampler`, the `order` of the predictor, and whether to correct.

        Raises:
            ValueError: if `order` is not 1, 2 or 3.
        """
        super().__init__(grid)
        if order not in (1, 2, 3):
            raise ValueError(f"{type(self).__name__} has order 1, 2 or 3, got {order}")
        self.order, self.corrector = order, corrector

    def step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        """Take one step from `sigma` to `sigma_next`."""
        x, here = trajectory.x, math.log(trajectory.sigma)
        prediction = predict(x, sigma)
        clean = prediction.clean
        times, earlier = history(memory, "implied")
        first = prediction.step(x, sigma, sigma_next)
        if self.corrector and times:
            order = int(memory["order"])
            distances = [times[0] - t for t in (*times[1:order], here)]
            weights = multistep_weights(times[0] - here, distances)
            corrected = torch.as_tensor(memory["first"])
            for c, D in zip(weights, (*earlier[1:order], clean), strict=True):
                corrected = corrected + c * (D - earlier[0])
            first = first + sigma_next / sigma * (corrected - x)
        trajectory.x = first
        if trajectory.sigma_next == 0:
            return
        order = min(self.order, len(times) + 1, trajectory.steps - trajectory.step)
        weights = multistep_weights(here - math.log(trajectory.sigma_next), [here - t for t in times[: order - 1]])
        for c, D in zip(weights, earlier, strict=False):
            trajectory.x = trajectory.x + c * (D - clean)
        memory.update({"order": order, "first": first})
        remember(memory, "implied", here, prediction.implied_clean(x, sigma), kept=self.order)


class DPMSolver3M(UniPC):
    """DPM-Solver++(3M) sampler, third order, N evaluations: `UniPC` of order 3 without the corrector.

    The quadratic term has the weight that makes the method exact for quadratic D. In diffusers it has half of that,
    which leaves second order (measured in `tests/test_samplers_unipc.py`).
    """

    def __init__(self, grid: Grid | int | None = None) -> None:
        """Set the `grid` as in `Sampler`."""
        super().__init__(grid, order=3, corrector=False)
