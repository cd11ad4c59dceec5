"""When do rounds of gradient guidance contract? A bound on delta (or eta) from the curvature of the objective.

On Gaussian data N(mu, Sigma) a round with the exact posterior maps the mean z to mu + eta Sigma g with g = grad f(z),
eta = (delta + g^T (z - mu)) / S and S = s^2 + g^T Sigma g. At its fixed point eta = delta / s^2, and the derivative is

    M = Sigma g g^T / S + eta (I - Sigma g g^T / S) Sigma H,

H the Hessian of f. For concave f its eigenvalues are real and below 1, and they lie above -1 exactly if

    delta < s^2 / lambda_max,   lambda_max = max eigenvalue of -(Sigma - 2 Sigma g g^T Sigma / (s^2 + 2 g^T Sigma g)) H.

With a constant eta M = eta Sigma H, and the condition is eta < 1 / lambda_max(-Sigma H). Derived here; in one dimension
it reads delta L p < s^2 + 2 g^2 p with p = Sigma and L = -H.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_guide.guidance.gradient import Strength, Tilt
from lightning_guide.objectives.objective import Objective
from lightning_guide.optimization.targets import GainTarget, Target
from lightning_guide.seeds import mix

__all__ = ["Bound", "bound", "overshoot"]


ITERATIONS = 30


@dataclass(frozen=True)
class Bound:
    """A setting by `name` ("delta" or "eta"), its `value`, and the `limit` below which rounds contract."""

    name: str
    value: float
    limit: float


def bound(objective: Objective, strength: Strength, rule: Target, *, mean: Tensor, prior: Tensor) -> Bound | None:
    """The bound at the `mean` (1, *) of a round, None for a `strength` and `rule` that have none.

    `prior` (n, *) as in `overshoot`.

    Raises:
        RuntimeError: if `objective` is not twice differentiable.
    """
    if isinstance(strength, Tilt):
        name, value, unit, noise = "eta", strength.eta, 1.0, None
    elif isinstance(rule, GainTarget) and strength.noise is not None:
        name, value, unit, noise = "delta", rule.delta, strength.noise**2, strength.noise
    else:
        return None
    largest = overshoot(objective, mean, prior, noise=noise)
    return Bound(name, value, unit / largest if largest else math.inf)


def overshoot(objective: Objective, z: Tensor, prior: Tensor, *, noise: float | None) -> float:
    """lambda_max at the point `z` (1, *), 0 if it is not positive, by power iteration.

    `prior` (n, *) are unguided samples, whose covariance stands for Sigma; with few of them lambda_max comes out too
    large, by (1 + sqrt(d / n))^2 for isotropic data in d dimensions. `noise` s of the label, None for a constant eta.
    """
    centered = (prior - prior.mean(0)).flatten(1).to(torch.float64)  # (n, D)

    def spread(v: Tensor) -> Tensor:
        """Sigma v (D,)."""
        return centered.T @ (centered @ v) / max(len(prior) - 1, 1)

    _, gradient = objective.value_and_gradient(z)
    g = gradient.flatten().to(torch.float64)
    moved = spread(g)
    v = torch.randn(len(g), generator=torch.Generator().manual_seed(mix("contraction")), dtype=torch.float64).to(g)
    value = 0.0
    for _ in range(ITERATIONS):
        v = v / v.norm()
        bent = objective.curvature(z, v.reshape(z.shape).to(z)).flatten().to(torch.float64)
        w = spread(bent)
        if noise is not None:
            w = w - 2 * moved * (moved @ bent) / (noise**2 + 2 * (g @ moved))
        value = -float(v @ w)
        if not float(w.norm()) > 0:
            return 0.0
        v = w
    return max(value, 0.0)
