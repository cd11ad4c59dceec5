"""First-order samplers: Euler (DDIM with eta = 0), DDIM and ancestral sampling, with learned variances, too.

Song et al. 2021 (DDIM), https://arxiv.org/abs/2010.02502, equations 12 and 16; Yu et al. 2023 (FreeDoM),
https://arxiv.org/abs/2303.09833, with a different definition of eta; Nichol and Dhariwal 2021,
https://arxiv.org/abs/2102.09672, equation 15.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from lightning_guide.denoiser import Prediction, Trajectory
from lightning_guide.noise import Grid
from lightning_guide.samplers.base import Memory, PredictAt, Sampler

__all__ = ["Ancestral", "DDIM", "Euler", "LearnedVariance", "ProportionalAncestral"]


class Euler(Sampler):
    """Euler sampler (DDIM with eta = 0), first order: x' = clean + sigma' noise. N evaluations.

    Examples:
        >>> import torch
        >>> from lightning_guide.distributions.gaussian_mixture import gaussian
        >>> from lightning_guide.seeds import SampleSeeds
        >>> x = torch.tensor([[81.0]], dtype=torch.float64)  # at sigma = 80; the exact solution ends at 1.5
        >>> *_, end = Euler(32).steps(gaussian([1.0], [[0.25]]), x, seeds=SampleSeeds(0, [0]))
        >>> round(float(end.x), 3), end.evaluations
        (1.456, 32)
        >>> samples = Euler(8).sample(gaussian([1.0, -2.0], [[0.25, 0.0], [0.0, 0.25]]), seeds=SampleSeeds(0, range(4)))
        >>> tuple(samples.x.shape), samples.evaluations
        ((4, 2), 8)
    """

    single = True

    def step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        """Take one step from `sigma` to `sigma_next`."""
        trajectory.x = predict(trajectory.x, sigma).step(trajectory.x, sigma, sigma_next)


class Ancestral(Sampler):
    """Base of ancestral samplers: x' = clean + sqrt(sigma'^2 - s^2) noise + s n, n standard normal. N evaluations.

    The noise level after the step is sigma' for any s in [0, sigma'].
    """

    def __init__(self, grid: Grid | int | None = None, *, eta: float) -> None:
        """Set the `grid` as in `Sampler`, and `eta` in [0, 1], the amount of fresh noise; 0 gives `Euler`.

        Raises:
            ValueError: if `eta` is not in [0, 1].
        """
        super().__init__(grid)
        if not 0 <= eta <= 1:
            raise ValueError(f"{type(self).__name__} needs eta between 0 (Euler) and 1, got {eta}")
        self.eta, self.single = eta, eta == 0

    @abstractmethod
    def fresh(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Return s (), the standard deviation of the fresh noise."""

    def step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        """Take one step from `sigma` to `sigma_next`."""
        s = self.fresh(sigma, sigma_next)
        kept = (sigma_next**2 - s**2).clamp(min=0).sqrt()
        prediction = predict(trajectory.x, sigma)
        x = prediction.step(trajectory.x, sigma, kept)
        if self.eta > 0 and trajectory.sigma_next > 0:
            n = trajectory.seeds.normal("ancestral", x.shape[1:], x.device).to(x)
            x = x.addcmul_(n, self.spread(prediction, s, sigma, sigma_next))
        trajectory.x = x

    def spread(self, prediction: Prediction, s: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Return the standard deviation by which fresh noise is scaled, () or (B, *): `s`."""
        return s


class DDIM(Ancestral):
    """DDIM sampler: s = eta (sigma' / sigma) sqrt(sigma^2 - sigma'^2). The default eta = 1 is the posterior of DDPM.

    In the variance-preserving form s = eta sqrt((1 - abar') / (1 - abar)) sqrt(1 - abar / abar').
    """

    def __init__(self, grid: Grid | int | None = None, *, eta: float = 1.0) -> None:
        """Set `grid` and `eta` as in `Ancestral`."""
        super().__init__(grid, eta=eta)

    def fresh(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Return s = eta (sigma' / sigma) sqrt(sigma^2 - sigma'^2)."""
        return self.eta * sigma_next / sigma * (sigma**2 - sigma_next**2).sqrt()


class LearnedVariance(DDIM):
    """DDPM sampler with the variances that the model predicts: x' = clean + sqrt(sigma'^2 - s^2) noise + s^(1-v) b^v n.

    s is that of `DDIM`, the smallest standard deviation of fresh noise, b = s (sigma / sigma') sqrt((1 + sigma'^2) /
    (1 + sigma^2)) the largest one, and v (B, *) is predicted: in the variance-preserving form the variance is
    exp(v ln beta + (1 - v) ln beta~), with beta of the steps that are taken. Models of ADM and DeepFloyd IF.
    """

    def __init__(self, grid: Grid | int | None = None) -> None:
        """Set the `grid` as in `Sampler`."""
        super().__init__(grid)

    def spread(self, prediction: Prediction, s: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Return s^(1-v) b^v.

        Raises:
            ValueError: if the model predicts no variances.
        """
        if prediction.variance is None:
            raise ValueError("LearnedVariance needs a model that predicts variances, as ADM and DeepFloyd IF; see DDIM")
        ratio = sigma / sigma_next * ((1 + sigma_next**2) / (1 + sigma**2)).sqrt()
        return s * ratio**prediction.variance


class ProportionalAncestral(Ancestral):
    """FreeDoM's ancestral sampler: s = eta sigma'; the same fraction eta^2 of the variance is fresh in each step."""

    def __init__(self, grid: Grid | int | None = None, *, eta: float = 0.5) -> None:
        """Set `grid` and `eta` as in `Ancestral`."""
        super().__init__(grid, eta=eta)

    def fresh(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Return s = eta sigma'."""
        return self.eta * sigma_next
