"""How strongly a linear label y = g^T x_0 + noise pulls: the factor c of G = c J with J = grad_x g^T D(x, sigma).

Guo et al. 2024, "Gradient Guidance for Diffusion Models: An Optimization Perspective",
https://arxiv.org/abs/2404.14743, definition 1 and lemma 1. They write in the variance-preserving form
x_t = alpha x_0 + sqrt(h) e with h = 1 - alpha^2. Ours is x = x_t / alpha at the noise level sigma = sqrt(h) / alpha, so

    alpha^2 = 1 / (1 + sigma^2),   h = sigma^2 / (1 + sigma^2),   grad_x = alpha grad_{x_t},   J = alpha J_t,

and a score G_t added in their form is G = alpha G_t in ours. Their look-ahead guidance G_t = 2 b_t (y - v) J_t, with
v = g^T D and 2 b_t = alpha^2 / (alpha^2 s^2 + h |J_t|^2), becomes

    G = (y - v) J / (s^2 + sigma^2 (1 + sigma^2) |J|^2).

Why: s^2 + Var(g^T x_0 | x) is the variance of y given x, and where the data are N(mu, P) with a projection P it equals
the denominator, so that G is the exact score of p(y | x). For any data Var(g^T x_0 | x) = sigma^2 g^T J by Tweedie's
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
    """What is known of the label at one point of a trajectory, each (B,) but for `sigma` ().

    `error` is y - v, `square` |J|^2 and `along` u^T J, u the gradient of v with respect to D (g without a decoder).
    """

    error: Tensor
    square: Tensor
    along: Tensor
    sigma: Tensor


class Strength(HasRecipe, ABC):
    """The factor c (B,) of the score c J that is added.

    Attributes:
        noise: standard deviation s of the label, None where the strength knows none.
    """

    noise: float | None = None

    @abstractmethod
    def at(self, point: Slope) -> Tensor:
        """c (B,) at one point."""


class PaperStrength(Strength):
    """c = scale (y - v) / (s^2 + sigma^2 (1 + sigma^2 / d^2) |J|^2), twice the b_t of the paper, where d = 1.

    Exact for data N(mu, d^2 P) with any orthogonal projection P.
    """

    def __init__(self, *, noise: float = 0.1, data_std: float = 1.0, scale: float = 1.0) -> None:
        """`noise` s of the label, `data_std` d of the data along their support, `scale` (their beta_coef).

        Raises:
            ValueError: if one of them is not positive.
        """
        _check_positive(self, noise=noise, data_std=data_std, scale=scale)
        self.noise: float = noise
        self.data_std, self.scale = data_std, scale

    def at(self, point: Slope) -> Tensor:
        """c (B,)."""
        variance = point.sigma**2 * (1 + point.sigma**2 / self.data_std**2) * point.square
        return self.scale * point.error / (self.noise**2 + variance)


class PosteriorStrength(Strength):
    """c = scale (y - v) / (s^2 + sigma^2 g^T J): the exact score of y for every Gaussian distribution of the data.

    Tweedie's second formula, Cov(x_0 | x) = sigma^2 dD/dx. The exact dD/dx has eigenvalues between 0 and 1, so that
    g^T J >= |J|^2; where a network's own says less, |J|^2 takes its place.
    """

    def __init__(self, *, noise: float = 0.1, scale: float = 1.0) -> None:
        """`noise` s of the label, `scale` a factor.

        Raises:
            ValueError: if one of them is not positive.
        """
        _check_positive(self, noise=noise, scale=scale)
        self.noise: float = noise
        self.scale = scale

    def at(self, point: Slope) -> Tensor:
        """c (B,)."""
        return self.scale * point.error / (self.noise**2 + point.sigma**2 * torch.maximum(point.along, point.square))


class ConstantStrength(Strength):
    """c = beta (y - v), the gradient of beta (y - v)^2 / 2; the paper's constant b_t is beta / 2.

    The published image experiment takes the mean of the loss over its batch, so its beta = 100 with 5 pictures is 20.
    """

    def __init__(self, beta: float) -> None:
        """`beta` in inverse squared units of the objective.

        Raises:
            ValueError: if it is not positive.
        """
        _check_positive(self, beta=beta)
        self.beta = beta

    def at(self, point: Slope) -> Tensor:
        """c (B,)."""
        return self.beta * point.error


class Tilt(Strength):
    """c = eta, whatever the label: the data are tilted, p(x_0) exp(eta g^T x_0), exactly so if they are Gaussian.

    The mean moves from mu to mu + eta Sigma g and the covariance stays. This is the constant-eta rule of the paper's
    analysis without the moments that a target y would take: with g = grad f at the mean of the last round, rounds
    settle where mean = mu + eta Sigma grad f(mean), the maximum of f(x) - |x - mu|^2_{Sigma^-1} / (2 eta).
    """

    def __init__(self, eta: float) -> None:
        """`eta` in inverse units of the objective: 1 / lambda of the regularized problem.

        Raises:
            ValueError: if it is not positive.
        """
        _check_positive(self, eta=eta)
        self.eta = eta

    def at(self, point: Slope) -> Tensor:
        """eta (B,)."""
        return point.error.new_full(point.error.shape, self.eta)


def _check_positive(strength: Strength, **values: float) -> None:
    """Refuses what is not a positive number."""
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{type(strength).__name__} needs {name} > 0 and finite, got {value}")
