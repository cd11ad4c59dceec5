"""Strengths of gradient guidance: c in G = c J with J = grad_x g^T D(x, sigma), for a linear label y = g^T x_0 + noise.

Guo et al. 2024, "Gradient Guidance for Diffusion Models: An Optimization Perspective",
https://arxiv.org/abs/2404.14743, definition 1 and lemma 1. The paper uses the variance-preserving form
x_t = alpha x_0 + sqrt(h) e with h = 1 - alpha^2. Here x = x_t / alpha at the noise level sigma = sqrt(h) / alpha, so

    alpha^2 = 1 / (1 + sigma^2),   h = sigma^2 / (1 + sigma^2),   grad_x = alpha grad_{x_t},   J = alpha J_t,

and a score G_t added in the paper's form is G = alpha G_t here. The look-ahead guidance G_t = 2 b_t (y - v) J_t, with
v = g^T D and 2 b_t = alpha^2 / (alpha^2 s^2 + h |J_t|^2), becomes

    G = (y - v) J / (s^2 + sigma^2 (1 + sigma^2) |J|^2).

Reason: s^2 + Var(g^T x_0 | x) is the variance of y given x. For data N(mu, P) with a projection P it equals the
denominator, so that G is the exact score of p(y | x). For any data Var(g^T x_0 | x) = sigma^2 g^T J by Tweedie's
formula; that is `PosteriorStrength`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_guide.utils.recipe import HasRecipe

__all__ = ["ConstantStrength", "PaperStrength", "PosteriorStrength", "Slope", "Strength", "Tilt"]


@dataclass(frozen=True)
class Slope:
    """Label and slope at one point of a trajectory, the input of a strength.

    Attributes:
        error: y - v (B,).
        square: |J|^2 (B,).
        along: u^T J (B,), u the gradient of v with respect to D (g without a decoder).
        sigma: noise level ().
    """

    error: Tensor
    square: Tensor
    along: Tensor
    sigma: Tensor


class Strength(HasRecipe, ABC):
    """Rule for the factor c (B,) of the added score c J.

    Attributes:
        noise: standard deviation s of the label, None for strengths without one.
    """

    noise: float | None = None

    @abstractmethod
    def at(self, slope: Slope) -> Tensor:
        """Return c (B,) at one point."""


class PaperStrength(Strength):
    """The paper's c = scale (y - v) / (s^2 + sigma^2 (1 + sigma^2 / d^2) |J|^2), twice its b_t; there d = 1.

    Exact for data N(mu, d^2 P) with any orthogonal projection P.
    """

    def __init__(self, *, noise: float = 0.1, data_std: float = 1.0, scale: float = 1.0) -> None:
        """Set `noise` s of the label, `data_std` d of the data along their support, `scale` (the paper's beta_coef).

        Raises:
            ValueError: if one of them is not positive.
        """
        _check_positive(self, noise=noise, data_std=data_std, scale=scale)
        self.noise: float = noise
        self.data_std, self.scale = data_std, scale

    def at(self, slope: Slope) -> Tensor:
        """Return c (B,)."""
        variance = slope.sigma**2 * (1 + slope.sigma**2 / self.data_std**2) * slope.square
        return self.scale * slope.error / (self.noise**2 + variance)


class PosteriorStrength(Strength):
    """c = scale (y - v) / (s^2 + sigma^2 g^T J), the exact score of y for every Gaussian distribution of the data.

    Tweedie's second formula, Cov(x_0 | x) = sigma^2 dD/dx. The exact dD/dx has eigenvalues between 0 and 1, so that
    g^T J >= |J|^2; where g^T J of a network is smaller, |J|^2 replaces it.
    """

    def __init__(self, *, noise: float = 0.1, scale: float = 1.0) -> None:
        """Set `noise` s of the label and `scale`, a factor.

        Raises:
            ValueError: if one of them is not positive.
        """
        _check_positive(self, noise=noise, scale=scale)
        self.noise: float = noise
        self.scale = scale

    def at(self, slope: Slope) -> Tensor:
        """Return c (B,)."""
        return self.scale * slope.error / (self.noise**2 + slope.sigma**2 * torch.maximum(slope.along, slope.square))


class ConstantStrength(Strength):
    """c = beta (y - v), the gradient of beta (y - v)^2 / 2; the paper's constant b_t is beta / 2.

    The published image experiment averages the loss over its batch, so its beta = 100 with 5 images is 20.
    """

    def __init__(self, beta: float) -> None:
        """Set `beta` in inverse squared units of the objective.

        Raises:
            ValueError: if it is not positive.
        """
        _check_positive(self, beta=beta)
        self.beta = beta

    def at(self, slope: Slope) -> Tensor:
        """Return c (B,)."""
        return self.beta * slope.error


class Tilt(Strength):
    """Exponential tilting, c = eta for every label: p(x_0) exp(eta g^T x_0), exact for Gaussian data.

    The mean moves from mu to mu + eta Sigma g and the covariance stays. This is the constant-eta rule of the paper's
    analysis without the moments that a target y would require: with g = grad f at the mean of the last round, rounds
    converge to mean = mu + eta Sigma grad f(mean), the maximum of f(x) - |x - mu|^2_{Sigma^-1} / (2 eta).
    """

    def __init__(self, eta: float) -> None:
        """Set `eta` in inverse units of the objective: 1 / lambda of the regularized problem.

        Raises:
            ValueError: if it is not positive.
        """
        _check_positive(self, eta=eta)
        self.eta = eta

    def at(self, slope: Slope) -> Tensor:
        """Return eta (B,)."""
        return slope.error.new_full(slope.error.shape, self.eta)


def _check_positive(strength: Strength, **values: float) -> None:
    """Check that all `values` are positive and finite."""
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{type(strength).__name__} needs {name} > 0 and finite, got {value}")
