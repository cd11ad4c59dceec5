"""Gaussian mixtures with exact density, score and denoiser, the reference for tests of samplers and guidances.

For p_data = sum_k w_k N(mu_k, Sigma_k) the noised density is p(x; sigma) = sum_k w_k N(x; mu_k, Sigma_k + sigma^2 I),

    D(x, sigma) = sum_k r_k(x) [mu_k + Sigma_k (Sigma_k + sigma^2 I)^-1 (x - mu_k)]

with the responsibilities r_k = softmax_k(ln w_k + ln N(x; mu_k, Sigma_k + sigma^2 I)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser

__all__ = ["GaussianMixture", "gaussian"]


class GaussianMixture(Denoiser):
    """Mixture of K Gaussians in d dimensions, as an exact denoiser in any dtype.

    With `labels` the components belong to classes, and a condition c >= 0 restricts the mixture to those of class c.

    Examples:
        >>> mixture = GaussianMixture([[-1.0], [1.0]], [[[0.04]], [[0.04]]], labels=[0, 1])
        >>> x, sigma = torch.tensor([[0.0], [0.0]]), torch.tensor(0.1)
        >>> [round(value, 2) + 0.0 for value in mixture(x, sigma, torch.tensor([-1, 1])).flatten().tolist()]
        [0.0, 0.2]
        >>> [round(value, 2) + 0.0 for value in mixture.score(x, sigma, torch.tensor([-1, 1])).flatten().tolist()]
        [0.0, 20.0]
    """

    means: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor
    log_weights: Tensor

    def __init__(
        self,
        means: Sequence[Sequence[float]] | Tensor,
        covariances: Sequence[Sequence[Sequence[float]]] | Tensor,
        weights: Sequence[float] | Tensor | None = None,
        *,
        labels: Sequence[int] | None = None,
        sigma_data: float = 0.5,
    ) -> None:
        """Set `means` (K, d), `covariances` (K, d, d), `weights` (K,), equal by default, and classes `labels` (K,).

        Raises:
            ValueError: if the shapes disagree, a covariance is not symmetric or has a negative eigenvalue, or a
                weight is negative or their sum is 0.
        """
        super().__init__()
        mean = torch.as_tensor(means, dtype=torch.float64)
        covariance = torch.as_tensor(covariances, dtype=torch.float64)
        count, dim = mean.shape if mean.ndim == 2 else (-1, -1)
        weight = torch.as_tensor([1.0] * count if weights is None else weights, dtype=torch.float64)
        if covariance.shape != (count, dim, dim) or weight.shape != (count,):
            raise ValueError(
                "a mixture needs means (K, d), covariances (K, d, d) and weights (K,), "
                f"got {tuple(mean.shape)}, {tuple(covariance.shape)} and {tuple(weight.shape)}"
            )
        if not torch.allclose(covariance, covariance.mT):
            raise ValueError("the covariances of a mixture must be symmetric")
        if bool((weight < 0).any()) or not float(weight.sum()) > 0:
            raise ValueError(f"the weights of a mixture must be >= 0 with a positive sum, got {weight.tolist()}")
        eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
        # float32 arithmetic may give slightly negative ones for singular matrices
        if bool((eigenvalues < -1e-6 * eigenvalues.abs().amax(-1, keepdim=True)).any()):
            raise ValueError(f"a covariance has the negative eigenvalue {float(eigenvalues.min()):.3g}")
        if labels is not None and len(labels) != count:
            raise ValueError(f"a mixture of {count} components needs as many labels, got {len(labels)}")
        self.data_shape, self.sigma_data = (dim,), sigma_data
        self.labels = None if labels is None else torch.as_tensor(labels)
        self.num_classes = 0 if self.labels is None else int(self.labels.max()) + 1
        self.register_buffer("means", mean)
        self.register_buffer("eigenvalues", eigenvalues.clamp(min=0))
        self.register_buffer("eigenvectors", eigenvectors)
        self.register_buffer("log_weights", (weight / weight.sum()).log())

    def _terms(self, x: Tensor, sigma: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return joint log-densities (B, K), eigenbasis coordinates (B, K, d) and noised variances (B or 1, K, d)."""
        offset = torch.einsum("bkd,kde->bke", x[:, None, :] - self.means.to(x), self.eigenvectors.to(x))
        variance = self.eigenvalues.to(x) + sigma.to(x).reshape(-1, 1, 1) ** 2
        exponent = (offset**2 / variance + variance.log() + math.log(2 * math.pi)).sum(-1)
        log_joint = self.log_weights.to(x) - 0.5 * exponent
        if condition is not None and self.labels is not None:
            allowed = (self.labels.to(x.device)[None, :] == condition[:, None]) | (condition < 0)[:, None]
            if not bool(allowed.any(1).all()):
                raise ValueError(
                    f"class label {int(condition[~allowed.any(1)][0])} has no component in this mixture; "
                    f"expected one of {sorted(set(self.labels.tolist()))}, or -1 for no condition"
                )
            log_joint = log_joint.masked_fill(~allowed, -math.inf)
        return log_joint, offset, variance

    def log_density(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return ln p(x; sigma) `(B,)` for `x` (B, d); with a condition up to the constant -ln p(class)."""
        return self._terms(x, sigma, condition)[0].logsumexp(-1)

    def score(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the gradient of ln p(x; sigma) with respect to x, `(B, d)`."""
        log_joint, offset, variance = self._terms(x, sigma, condition)
        return -torch.einsum("bk,bke,kde->bd", log_joint.softmax(-1), offset / variance, self.eigenvectors.to(x))

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return D = x + sigma^2 score `(B, d)`, computed in a form that stays exact at large sigma."""
        log_joint, offset, variance = self._terms(x, sigma, condition)
        inner = torch.einsum("bke,kde->bkd", offset * self.eigenvalues.to(x) / variance, self.eigenvectors.to(x))
        return torch.einsum("bk,bkd->bd", log_joint.softmax(-1), self.means.to(x) + inner)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `count` points (count, d), float32, and the component of each (count,)."""
        component = torch.multinomial(self.log_weights.exp(), count, replacement=True, generator=generator)
        z = torch.randn(count, self.data_shape[0], generator=generator, dtype=torch.float64, device=generator.device)
        scaled = z * self.eigenvalues[component].sqrt()
        x = self.means[component] + torch.einsum("be,bde->bd", scaled, self.eigenvectors[component])
        return x.float(), component

    def sample_each(self, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Draw one point from each of B generators: x (B, d), float32, and the component of each (B,)."""
        x, components = zip(*(self.sample(1, generator) for generator in generators), strict=True)
        return torch.cat(x), torch.cat(components)


def gaussian(mean: Sequence[float] | Tensor, covariance: Sequence[Sequence[float]] | Tensor | float) -> GaussianMixture:
    """Exact denoiser of one Gaussian N(mean, covariance), linear in x; a number is the variance of each coordinate."""
    center = torch.as_tensor(mean, dtype=torch.float64)
    spread = torch.as_tensor(covariance, dtype=torch.float64)
    return GaussianMixture(center[None], (spread if spread.ndim else spread * torch.eye(len(center)))[None])
