"""Denoisers: D(x, sigma, condition) -> estimate of the clean x, and EDM preconditioning.

Marginals are p(x; sigma) = p_data * N(0, sigma^2 I); the score is (D - x) / sigma^2 and the probability-flow ODE
dx/dsigma = (x - D) / sigma. Karras et al. 2022, https://arxiv.org/abs/2206.00364, equations 1 to 7 and table 1;
the uncertainty of Karras et al. 2024, https://arxiv.org/abs/2312.02696, equations 14 to 16.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Denoiser", "Models", "Predict", "Prediction", "Trajectory", "expand"]


def expand(values: Tensor, x: Tensor) -> Tensor:
    """`values` (B,), one for each sample, or () for all, such as noise levels, shaped to broadcast over `x` (B, *)."""
    return values.reshape(-1, *[1] * (x.ndim - 1)) if values.ndim else values


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says at one point of a trajectory, each `(B, *)`.

    `clean` is the estimate of x_0; `noise` the direction a sampler moves along. None, the usual case, means
    (x - clean) / sigma. A method may hand over another one: CFG++ moves along the unconditional noise.
    """

    clean: Tensor
    noise: Tensor | None = None

    def direction(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The noise at (x, sigma), its own or (x - clean) / sigma, with `sigma` (B,) or ()."""
        return (x - self.clean).div_(expand(sigma, x)) if self.noise is None else self.noise

    def step(self, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """clean + sigma_next noise: where this prediction at (x, sigma) expects x to be at `sigma_next` ()."""
        if self.noise is None:
            return torch.lerp(self.clean, x, sigma_next / sigma)
        return torch.addcmul(self.clean, self.noise, sigma_next)


@dataclass
class Trajectory:
    """Where a batch of samples stands; the sampler writes it, guidances read it.

    `x` (B, *) is the state. `sigma` and `sigma_next` belong to the current step and stay as they are through its
    corrector, so that an interval or a schedule is decided once for each step, and so does its number `step` of
    `steps`. `levels` are all noise levels of the sampler, the last one 0, for schedules that share something out over
    the trajectory; empty if unknown. `seeds` holds the random streams of the samples; `evaluations` counts the network
    calls spent. `diagnostics` holds what guidances want to tell about their last call, by name, `(B,)` each.
    """

    x: Tensor
    seeds: SampleSeeds
    sigma: float
    sigma_next: float = 0.0
    stage: Literal["predictor", "corrector"] = "predictor"
    evaluations: int = 0
    step: int = 0
    steps: int = 1
    levels: tuple[float, ...] = ()
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


Predict = Callable[[Tensor, Tensor, Tensor | None], Prediction]


class Models(Protocol):
    """Where references to models are looked up when an evaluation begins."""

    @property
    def main(self) -> Denoiser:
        """The model under evaluation."""

    def snapshot(self, *, run: str | None, images: int | float | str, sigma_rel: float) -> Denoiser:
        """A model out of the snapshots of `run` (None: the run under evaluation)."""


class Denoiser(HasRecipe, nn.Module, ABC):
    """Base of everything a sampler can follow: D(x, sigma, condition).

    Attributes:
        data_shape: shape of one x, without the batch.
        num_classes: number of labels, 0 for a denoiser that knows none.
        token_channels: C of embeddings (B, L, C) that are its condition, 0 for a denoiser that reads none.
        sigma_data: standard deviation of the data.
    """

    data_shape: tuple[int, ...]
    num_classes: int
    token_channels: int = 0
    sigma_data: float

    @property
    def conditional(self) -> bool:
        """Whether it is told a condition, labels or embeddings."""
        return bool(self.num_classes or self.token_channels)

    @abstractmethod
    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """E[x_0 | x] `(B, *data_shape)` at noise level `sigma` (B,) or (); float32 in and out."""

    def start(self, trajectory: Trajectory) -> Predict:
        """The denoiser for one trajectory, with a fresh state. Every call counts as one evaluation."""

        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            trajectory.evaluations += 1
            return Prediction(self(x, sigma, condition))

        return predict

    def resolve(self, models: Models) -> Denoiser:
        """This denoiser with every reference to a model replaced by the model; itself if it holds none."""
        return self

    def constrain(self) -> None:
        """Projects the parameters after an optimizer step (forced weight normalization); nothing by default."""
