"""Where a step is taken: what a step rule and an estimator know besides the gradient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_guide.denoiser import Trajectory

__all__ = ["Point"]


@dataclass(frozen=True)
class Point:
    """One call of a guidance.

    `noise` (B, *) is the direction (x - D) / sigma of the prediction that is guided. `sigma` is the level of this call
    (at Heun's corrector the lower one), `sigma_next` where the step leads; `trajectory` knows step, levels and seeds.
    """

    noise: Tensor
    sigma: float
    sigma_next: float
    trajectory: Trajectory
