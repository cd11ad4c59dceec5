"""Preconditionings: the coefficients that make a denoiser of a network, whatever the network predicts.

In the variance-exploding form x = x_0 + sigma n every parameterization in use is

    D(x, sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x, c_noise(sigma), condition)

Karras et al. 2022 (EDM), https://arxiv.org/abs/2206.00364, table 1; Salimans and Ho 2022 (velocity),
https://arxiv.org/abs/2202.00512; Liu et al. 2022 (rectified flow), https://arxiv.org/abs/2209.03003; Song et al. 2023
(consistency), https://arxiv.org/abs/2303.01469.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Prediction, expand
from lightning_guide.network import Network
from lightning_guide.noise import FlowGrid, Grid, KarrasGrid
from lightning_guide.noise_schedule import NoiseSchedule, Spacing, TimestepGrid
from lightning_guide.utils.recipe import HasRecipe

__all__ = [
    "Coefficients",
    "Consistency",
    "EDM",
    "EpsilonPrediction",
    "Preconditioned",
    "Preconditioning",
    "RectifiedFlow",
    "SamplePrediction",
    "VelocityPrediction",
]


class Coefficients(NamedTuple):
    """Coefficients at noise levels sigma, each of the shape of sigma."""

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor


class Preconditioning(HasRecipe, ABC):
    """Base of preconditionings.

    Attributes:
        sigma_data: standard deviation of the data that the coefficients assume; None: any.
        sigma_max: highest noise level that a network of this kind was trained for.
    """

    sigma_data: float | None = None
    sigma_max: float = math.inf

    @abstractmethod
    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Return the coefficients at `sigma` (*), in the precision of sigma or higher."""

    def grid(self, num_steps: int) -> Grid:
        """Return the grid of `num_steps` steps of samplers that name none; EDM's by default."""
        return KarrasGrid(num_steps)


class EDM(Preconditioning):
    """EDM: c_skip = s_d^2 / (s^2 + s_d^2), c_out = s s_d c_in, c_in = 1 / sqrt(s^2 + s_d^2), c_noise = ln(s) / 4.

    s is the noise level sigma, s_d is `sigma_data`.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        """Set the standard deviation of the encoded data.

        Raises:
            ValueError: unless it is positive.
        """
        self.sigma_data = _positive(sigma_data, "sigma_data")

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Return the coefficients at `sigma` (*)."""
        assert self.sigma_data is not None
        c_in = (sigma**2 + self.sigma_data**2).rsqrt()
        return Coefficients((self.sigma_data * c_in) ** 2, sigma * self.sigma_data * c_in, c_in, sigma.log() / 4)


class _VariancePreserving(Preconditioning):
    """Base of predictions in variance-preserving form: c_in = 1 / sqrt(1 + s^2), c_noise is the timestep of s."""

    def __init__(
        self, schedule: NoiseSchedule | None = None, *, spacing: Spacing = "linspace", offset: int = 0
    ) -> None:
        """Set the noise `schedule` of the model; its highest level is `sigma_max`.

        Args:
            schedule: noise levels of the timesteps of a discrete model; None: any level, with c_noise = ln(s) / 4.
            spacing: timesteps of the default grid, as in `TimestepGrid`.
            offset: offset of "leading" timesteps.
        """
        self.schedule, self.spacing, self.offset = schedule, spacing, offset
        if schedule is not None:
            self.sigma_max = schedule.sigma_max

    def grid(self, num_steps: int) -> Grid:
        """Return the levels of `num_steps` timesteps; EDM's grid without a schedule."""
        if self.schedule is None:
            return super().grid(num_steps)
        return TimestepGrid(self.schedule, num_steps, spacing=self.spacing, offset=self.offset)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Return the coefficients at `sigma` (*)."""
        c_in = (1 + sigma**2).rsqrt()
        c_noise = sigma.log() / 4 if self.schedule is None else self.schedule.timestep(sigma)
        return Coefficients(*self.mix(sigma, c_in), c_in, c_noise)

    @abstractmethod
    def mix(self, sigma: Tensor, c_in: Tensor) -> tuple[Tensor, Tensor]:
        """Return c_skip and c_out."""


class EpsilonPrediction(_VariancePreserving):
    """F predicts the noise n: c_skip = 1, c_out = -s."""

    def mix(self, sigma: Tensor, c_in: Tensor) -> tuple[Tensor, Tensor]:
        """Return c_skip and c_out."""
        return torch.ones_like(sigma), -sigma


class VelocityPrediction(_VariancePreserving):
    """F predicts v = (n - s x_0) / sqrt(1 + s^2): c_skip = 1 / (1 + s^2), c_out = -s / sqrt(1 + s^2)."""

    def mix(self, sigma: Tensor, c_in: Tensor) -> tuple[Tensor, Tensor]:
        """Return c_skip and c_out."""
        return c_in**2, -sigma * c_in


class SamplePrediction(_VariancePreserving):
    """F predicts the clean x_0: c_skip = 0, c_out = 1."""

    def mix(self, sigma: Tensor, c_in: Tensor) -> tuple[Tensor, Tensor]:
        """Return c_skip and c_out."""
        return torch.zeros_like(sigma), torch.ones_like(sigma)


class RectifiedFlow(Preconditioning):
    """F predicts the velocity n - x_0 of (1 - t) x_0 + t n, t = s / (1 + s): c_in = c_skip = 1 / (1 + s).

    c_out = -s / (1 + s), c_noise = `scale` t (SD3: 1000). With `reverse` the time runs from noise to data and F
    predicts x_0 - n: c_out = s / (1 + s), c_noise = `scale` / (1 + s) (SiT: scale 1).
    """

    def __init__(self, scale: float = 1000.0, *, reverse: bool = False, shift: float = 1.0) -> None:
        """Set the `scale` of the time, its direction, and the `shift` of the default grid.

        Raises:
            ValueError: unless `scale` and `shift` are positive.
        """
        self.scale, self.reverse, self.shift = _positive(scale, "scale"), reverse, _positive(shift, "shift")

    def grid(self, num_steps: int) -> Grid:
        """Return equal steps of the shifted time."""
        return FlowGrid(num_steps, shift=self.shift)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Return the coefficients at `sigma` (*)."""
        c_in = 1 / (1 + sigma)
        t = sigma * c_in
        if self.reverse:
            return Coefficients(c_in, t, c_in, self.scale * c_in)
        return Coefficients(c_in, -t, c_in, self.scale * t)


class Consistency(Preconditioning):
    """Consistency models: c_skip = s_d^2 / ((s - m)^2 + s_d^2), c_out = (s - m) s_d c_in, c_noise = 250 ln(s).

    c_in = 1 / sqrt(s^2 + s_d^2) and m = `sigma_min`, where D is the identity.
    """

    def __init__(self, sigma_data: float = 0.5, *, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        """Set the standard deviation of the data and the range of noise levels.

        Raises:
            ValueError: unless all are positive and the range ascends.
        """
        self.sigma_data = _positive(sigma_data, "sigma_data")
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"Consistency needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def grid(self, num_steps: int) -> Grid:
        """Return EDM's grid within the range; its first level alone for one step."""
        return KarrasGrid(num_steps, sigma_min=self.sigma_min, sigma_max=self.sigma_max)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Return the coefficients at `sigma` (*); float64, since s - m cancels."""
        assert self.sigma_data is not None
        s, s_d = sigma.to(torch.float64), self.sigma_data
        c_in, above = (s**2 + s_d**2).rsqrt(), s - self.sigma_min
        return Coefficients(s_d**2 / (above**2 + s_d**2), above * s_d * c_in, c_in, 250 * s.log())


class Preconditioned(Denoiser):
    r"""Denoiser D = c_skip x + c_out F(c_in x, c_noise, e) of a network F, by default with EDM's coefficients.

    Examples:
        >>> from lightning_guide.networks import PointMLP
        >>> denoiser = Preconditioned(PointMLP((2,), width=8), sigma_data=0.5)
        >>> x = torch.tensor([[1.0, -2.0]])
        >>> denoiser(x, torch.tensor(0.5)).detach()  # F starts at zero, and c_skip is 1/2 at sigma = sigma_data
        tensor([[ 0.5000, -1.0000]])
        >>> flow = Preconditioned(PointMLP((2,), width=8), RectifiedFlow())
        >>> flow(x, torch.tensor(3.0)).detach()  # c_skip is 1 / (1 + sigma)
        tensor([[ 0.2500, -0.5000]])
    """

    def __init__(
        self, network: Network, preconditioning: Preconditioning | None = None, *, sigma_data: float = 0.5
    ) -> None:
        """Wrap `network` F under `preconditioning`, the coefficients; default EDM(sigma_data).

        `sigma_data` is the standard deviation of the encoded data, unless the preconditioning has its own.

        Raises:
            ValueError: unless `network` is a `Network` and `sigma_data` positive.
        """
        super().__init__()
        if not isinstance(network, Network):
            expected = "expected an lg.Network, with data_shape, num_classes, embed and forward: docs/extending.md"
            raise ValueError(f"Preconditioned: the network is a {type(network).__name__}; {expected}")
        self.network = network
        self.preconditioning = preconditioning or EDM(sigma_data)
        self.sigma_data = self.preconditioning.sigma_data or _positive(sigma_data, "sigma_data")
        self.data_shape = tuple(network.data_shape)
        self.num_classes, self.token_channels = network.num_classes, network.token_channels

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        """Highest noise level of the preconditioning."""
        return self.preconditioning.sigma_max

    def grid(self, num_steps: int) -> Grid:
        """Return the default grid of the preconditioning."""
        return self.preconditioning.grid(num_steps)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        condition: Tensor | None = None,
        *,
        augmentation: Tensor | None = None,
        added: Tensor | None = None,
        variances: bool = False,
    ) -> Tensor:
        """Return D `(B, *data_shape)`; `augmentation` (B, A) holds the augmentation parameters of `x`, if any.

        float64 if x is, else float32. `added` (B, E) is added to the embedding of the condition. With `variances` v
        follows as further channels, if the network predicts it.

        Raises:
            ValueError: if `x` does not have the shape of the network, or its channels if the network is resizable.
        """
        shape, expected = tuple(x.shape[1:]), self.data_shape
        if self.network.resizable and len(shape) == len(expected):
            shape, expected = shape[:1], expected[:1]
        if shape != expected:
            raise ValueError(f"x has shape {tuple(x.shape[1:])} without the batch; expected {self.data_shape}")
        precision = torch.float64 if x.dtype == torch.float64 else torch.float32
        c = Coefficients(*(each.to(precision) for each in self.preconditioning.coefficients(sigma.to(precision))))
        embedding = self.network.embed(condition, len(x))
        if augmentation is not None:
            embedding = self.network.augmented(embedding, augmentation)
        if added is not None:
            assert embedding is not None
            embedding = embedding + added.to(embedding)
        F = self.network(expand(c.input, x) * x, c.noise.expand(len(x)), embedding).to(precision)
        channels = x.shape[1]
        D = expand(c.skip, x) * x + expand(c.out, x) * F[:, :channels]
        return torch.cat([D, (F[:, channels:] + 1) / 2], dim=1) if variances else D

    def predict(self, x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
        """Return the prediction, with the variances that the network predicts."""
        if not self.network.variances:
            return super().predict(x, sigma, condition)
        clean, v = self(x, sigma, condition, variances=True).chunk(2, dim=1)
        return Prediction(clean, variance=v)

    def constrain(self) -> None:
        """Project the parameters of the network."""
        self.network.constrain()


def _positive(value: float, name: str) -> float:
    """Return `value`, or refuse it unless it is positive."""
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return value
