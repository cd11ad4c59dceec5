"""Random Gaussian mixtures whose guided distribution has a closed form, and the distance of samples to it.

p_0 = (1 / K) sum_k N(mu_k, s^2 I) and loss = |x - y|^2 / (2 T^2). With v = s^2 sigma^2 / (s^2 + sigma^2) and
m_k = (sigma^2 mu_k + s^2 x) / (s^2 + sigma^2): E[exp(-loss) | x] = sum_k pi_k(x) (T^2 / (T^2 + v))^(d/2)
exp(-|m_k - y|^2 / (2 (T^2 + v))), and p_0 exp(-loss) is another mixture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_guide.distributions.gaussian_mixture import GaussianMixture

double = torch.float64


def sliced_distance(x: Tensor, y: Tensor, generator: torch.Generator) -> float:
    """Return the sliced Wasserstein-2 distance of as many samples `x` and `y` (n, d), over 64 random directions."""
    directions = torch.nn.functional.normalize(torch.randn(64, x.shape[1], generator=generator, dtype=double), dim=1)
    gaps = (x @ directions.T).sort(0).values - (y @ directions.T).sort(0).values
    return float(gaps.square().mean().sqrt())


def given_measurement(prior: GaussianMixture, A: Tensor, y: Tensor, noise: float) -> GaussianMixture:
    """Return the mixture `prior` given y = A x + noise n, for `A` (m, d) and `y` (m,).

    Component k becomes N(mu_k + G_k (y - A mu_k), C_k - G_k A C_k) with G_k = C_k A^T S_k^-1 and
    S_k = A C_k A^T + noise^2 I; its weight is multiplied by N(y; A mu_k, S_k).
    """
    C = torch.einsum("kde,ke,kfe->kdf", prior.eigenvectors, prior.eigenvalues, prior.eigenvectors)
    S = A @ C @ A.T + noise**2 * torch.eye(len(A), dtype=double)
    G = C @ A.T @ torch.linalg.inv(S)
    rest = y - prior.means @ A.T  # (K, m)
    means = prior.means + torch.einsum("kdm,km->kd", G, rest)
    covariances = C - G @ A @ C
    log_weights = prior.log_weights + torch.distributions.MultivariateNormal(0 * rest, S).log_prob(rest)
    return GaussianMixture(means, (covariances + covariances.mT) / 2, log_weights.softmax(0))


@dataclass(frozen=True)
class Problem:
    """A mixture and its quadratic loss."""

    means: Tensor  # (K, d)
    s: float
    target: Tensor  # (d,)
    T: float

    @classmethod
    def draw(cls, seed: int, *, dim: int, K: int = 4, s: float = 0.3, T: float) -> Problem:
        """Draw standard normal means; the target is the first of them."""
        generator = torch.Generator().manual_seed(seed)
        means = torch.randn(K, dim, generator=generator, dtype=double)
        return cls(means, s, means[0], T)

    @property
    def dim(self) -> int:
        """d."""
        return self.means.shape[1]

    def prior(self) -> GaussianMixture:
        """The exact denoiser."""
        eye = torch.eye(self.dim, dtype=double)
        return GaussianMixture(self.means, self.s**2 * eye.expand(len(self.means), self.dim, self.dim))

    def posterior(self) -> GaussianMixture:
        """The exact denoiser of p_0 exp(-loss)."""
        a = self.T**2 / (self.s**2 + self.T**2)
        means = a * self.means + (1 - a) * self.target
        eye = torch.eye(self.dim, dtype=double)
        covariance = self.s**2 * a * eye
        return GaussianMixture(means, covariance.expand(len(means), self.dim, self.dim), self.weights())

    def weights(self) -> Tensor:
        """Weights (K,) of the modes of the posterior."""
        return (-(self.means - self.target).square().sum(1) / (2 * (self.s**2 + self.T**2))).softmax(0)

    def modes(self, x: Tensor) -> Tensor:
        """Responsibilities (n, K) of the modes of the prior for clean points `x` (n, d)."""
        return (-(x[:, None] - self.means).square().sum(2) / (2 * self.s**2)).softmax(1)

    def noised(self, count: int, sigma: float, generator: torch.Generator) -> Tensor:
        """Draw (count, d) from the prior with noise `sigma`."""
        k = torch.randint(len(self.means), (count,), generator=generator)
        z = torch.randn(count, self.dim, generator=generator, dtype=double)
        return self.means[k] + math.hypot(self.s, sigma) * z

    def exact_slope(self, x: Tensor, sigma: float) -> Tensor:
        """Gradient (n, d) of -log E[exp(-loss) | x]."""
        v = self.s**2 * sigma**2 / (self.s**2 + sigma**2)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            log_pi = -(x[:, None] - self.means).square().sum(2) / (2 * (self.s**2 + sigma**2))
            m = (sigma**2 * self.means + self.s**2 * x[:, None]) / (self.s**2 + sigma**2)
            log_l = -(m - self.target).square().sum(2) / (2 * (self.T**2 + v))
            h = (log_pi.log_softmax(1) + log_l).logsumexp(1)
            return -torch.autograd.grad(h.sum(), x)[0]
