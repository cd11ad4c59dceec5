"""The handwritten digits as a Gaussian mixture with an exact denoiser.

Three components per class with diagonal covariances in the basis of the principal components, fitted to the digits of
scikit-learn at 8x8 in [-1, 1]. Scores, labels and log-densities are exact, and no diffusion network is trained.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture as Fit
from torch import Tensor

from lightning_guide.denoiser import Denoiser

double = torch.float64


def images() -> tuple[Tensor, Tensor]:
    """All digits (1797, 1, 8, 8) in [-1, 1] and their labels."""
    data = load_digits()
    return torch.tensor(data.images / 8 - 1, dtype=double)[:, None], torch.tensor(data.target)


class DigitPrior(Denoiser):
    """Exact denoiser of the mixture, in float64; a condition is a class label, -1 for none."""

    data_shape, num_classes, sigma_data = (1, 8, 8), 10, 0.5

    def __init__(self, components: int = 3, *, floor: float = 0.01) -> None:
        """Fit `components` to each class; `floor` is added to the variances."""
        super().__init__()
        x, labels = images()
        flat = x.flatten(1)
        self.center = flat.mean(0)
        self.basis = torch.linalg.eigh(torch.cov(flat.T))[1]  # (64, 64), columns
        z = ((flat - self.center) @ self.basis).numpy()
        means, variances, weights = [], [], []
        for label in range(10):
            own = z[(labels == label).numpy()]
            fit = Fit(components, covariance_type="diag", reg_covar=floor, random_state=0).fit(own)
            means.append(fit.means_)
            variances.append(fit.covariances_)
            weights.append(fit.weights_ / 10)
        self.means, self.variances, log_weights = (
            torch.tensor(np.concatenate(each)) for each in (means, variances, [np.log(w) for w in weights])
        )
        self.log_weights = log_weights
        self.labels = torch.arange(10).repeat_interleave(components)

    def _coordinates(self, x: Tensor) -> Tensor:
        return (x.flatten(1).to(double) - self.center) @ self.basis

    def log_joint(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """ln p(x, k; sigma) (B, K) of all components."""
        noised = self.variances + torch.as_tensor(sigma, dtype=double).reshape(-1, 1, 1) ** 2
        gaps = (self._coordinates(x)[:, None] - self.means) ** 2 / noised
        return self.log_weights - 0.5 * (gaps + (2 * torch.pi * noised).log()).sum(2)

    def log_density(self, x: Tensor, sigma: float = 0.02) -> Tensor:
        """ln p(x; sigma) (B,)."""
        return self.log_joint(x, sigma).logsumexp(1)

    def log_labels(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """ln p(y | x, sigma) (B, 10)."""
        joint = self.log_joint(x, sigma)
        by_class = joint.reshape(len(joint), 10, -1).logsumexp(2)
        return by_class.log_softmax(1)

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """E[x_0 | x], in the dtype of `x`."""
        joint = self.log_joint(x, sigma)
        if condition is not None:
            other = (self.labels != condition[:, None]) & (condition >= 0)[:, None]
            joint = joint.masked_fill(other, -torch.inf)
        level = sigma.to(double).reshape(-1, 1, 1) ** 2
        gain = self.variances / (self.variances + level)
        estimates = self.means + gain * (self._coordinates(x)[:, None] - self.means)
        z = (joint.softmax(1)[..., None] * estimates).sum(1)
        return (z @ self.basis.T + self.center).reshape(x.shape).to(x.dtype)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `count` images (count, 1, 8, 8) and their labels."""
        k = torch.multinomial(self.log_weights.exp(), count, replacement=True, generator=generator)
        noise = torch.randn(count, 64, generator=generator, dtype=double)
        z = self.means[k] + self.variances[k].sqrt() * noise
        return (z @ self.basis.T + self.center).reshape(-1, 1, 8, 8), self.labels[k]
