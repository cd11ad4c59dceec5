"""Contraction of rounds of gradient guidance: a bound on delta (or eta) from the curvature of the objective.

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
from lightning_guide.objectives.energy import Energy
from lightning_guide.optimization.targets import GainTarget, Target
from lightning_guide.seeds import mix

__all__ = ["Bound", "bound", "overshoot"]


ITERATIONS = 30  # of the power iteration


@dataclass(frozen=True)
class Bound:
    """Bound on one setting for contraction.

    Attributes:
        name: of the setting, "delta" or "eta".
        value: of the setting.
        limit: rounds contract if `value` is below it.
    """

    name: str
    value: float
    limit: float


def bound(objective: Energy, strength: Strength, rule: Target, *, mean: Tensor, prior: Tensor) -> Bound | None:
    """Return the bound at the `mean` (1, *) of a round, None for a `strength` and `rule` without one.

    `prior` (n, *) is as in `overshoot`.

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


def overshoot(objective: Energy, z: Tensor, prior: Tensor, *, noise: float | None) -> float:
    """Return lambda_max at the point `z` (1, *), or 0 if it is not positive, by power iteration.

    `prior` (n, *) are unguided samples, whose covariance estimates Sigma. Few of them overestimate lambda_max, by
    (1 + sqrt(d / n))^2 for isotropic data in d dimensions. `noise` is s of the label, None for a constant eta.
    """
    centered = (prior - prior.mean(0)).flatten(1).to(torch.float64)  # (n, D)

    def spread(v: Tensor) -> Tensor:
        """Return Sigma v (D,)."""
        return centered.T @ (centered @ v) / max(len(prior) - 1, 1)

    _, gradient = objective.value_and_gradient(z)
    g = gradient.flatten().to(torch.float64)
    sigma_g = spread(g)
    # waits once: the numbers are those of the host, for any device
    v = torch.randn(len(g), generator=torch.Generator().manual_seed(mix("contraction")), dtype=torch.float64).to(g)
    value = 0.0
    for _ in range(ITERATIONS):
        v = v / v.norm()
        hessian_v = objective.curvature(z, v.reshape(z.shape).to(z)).flatten().to(torch.float64)
        w = spread(hessian_v)
        if noise is not None:
            w = w - 2 * sigma_g * (sigma_g @ hessian_v) / (noise**2 + 2 * (g @ sigma_g))
        value = -float(v @ w)  # waits in each iteration, after rounds 1, 2, 4, 8, ... alone
        if not float(w.norm()) > 0:  # waits, as above
            return 0.0
        v = w
    return max(value, 0.0)
