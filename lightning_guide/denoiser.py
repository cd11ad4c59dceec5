"""Denoisers D(x, sigma, condition), their predictions, and the state of a sampled batch.

Marginals are p(x; sigma) = p_data * N(0, sigma^2 I); the score is (D - x) / sigma^2 and the probability-flow ODE
dx/dsigma = (x - D) / sigma. Karras et al. 2022, https://arxiv.org/abs/2206.00364, equations 1 to 7.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from lightning_guide.data import Prompts
from lightning_guide.noise import Grid, KarrasGrid
from lightning_guide.origin import Origin
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Denoiser", "DerivedDenoiser", "Models", "Predict", "Prediction", "Trajectory", "expand"]


def expand(values: Tensor, x: Tensor) -> Tensor:
    """Reshape `values`, one for each sample (B,) or one for all (), to broadcast over `x` (B, *)."""
    return values.reshape(-1, *[1] * (x.ndim - 1)) if values.ndim else values


@dataclass(frozen=True)
class Prediction:
    """Denoiser output at one point of a trajectory, each `(B, *)`.

    `clean` is the estimate of x_0; `noise` is the direction a sampler moves along. None, the usual case, means
    (x - clean) / sigma. A method may return another direction: CFG++ moves along the unconditional noise. `variance` is
    v of models that predict variances, for the sampler `LearnedVariance`; guidances keep that of their positive.
    """

    clean: Tensor
    noise: Tensor | None = None
    variance: Tensor | None = None

    def direction(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the noise at (x, sigma): `noise` if given, else (x - clean) / sigma; `sigma` is (B,) or ()."""
        return (x - self.clean).div_(expand(sigma, x)) if self.noise is None else self.noise

    def implied_clean(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return x - sigma noise at `sigma` (): `clean`, unless a separate `noise` is given."""
        return self.clean if self.noise is None else torch.addcmul(x, self.noise, sigma, value=-1)

    def step(self, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Return clean + sigma_next noise: the x that this prediction at (x, sigma) implies at `sigma_next` ()."""
        if self.noise is None:
            return torch.lerp(self.clean, x, sigma_next / sigma)
        return torch.addcmul(self.clean, self.noise, sigma_next)


@dataclass
class Trajectory:
    """Sampler state of a batch, written by samplers and read by guidances.

    `x` (B, *) is the state. `sigma`, `sigma_next` and the number `step` of `steps` belong to the current step and
    stay the same in its corrector, so that an interval or a schedule is evaluated once for each step. `levels` are all
    noise levels of the sampler, the last one 0, for schedules that distribute a total over the trajectory; empty if
    unknown. `renoised` counts how often noise was added to go back to a higher level. `single` says whether each step
    goes along the noise of one prediction, x' = clean + sigma' noise. `seeds` holds the random streams of the
    samples; `evaluations` counts the network calls (NFE). `diagnostics` holds per-sample diagnostics reported by
    guidances for their last call, by name, `(B,)` each.
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
    renoised: int = 0
    single: bool = True
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


Predict = Callable[[Tensor, Tensor, Tensor | None], Prediction]


class Models(Protocol):
    """Models that references are resolved to when an evaluation starts."""

    @property
    def main(self) -> Denoiser:
        """Return the model under evaluation."""

    @property
    def prompts(self) -> Prompts | None:
        """Return the prompts of the evaluation, for models that take embeddings; None if there are none."""

    def snapshot(self, *, run: str | None, images: int | float | str, sigma_rel: float) -> Denoiser:
        """Return a model from the snapshots of `run` (None: the run under evaluation)."""


class Denoiser(HasRecipe, nn.Module, ABC):
    """Base of denoisers D(x, sigma, condition), which samplers follow.

    Attributes:
        data_shape: shape of one x, without the batch.
        num_classes: number of labels, 0 for a denoiser without labels.
        class_names: names of the labels in their order, as recorded by its run; None if unknown.
        token_channels: C of embeddings (B, L, C) that are its condition, 0 for a denoiser without embeddings.
        sigma_data: standard deviation of the data.
        sigma_max: highest noise level that the denoiser was trained for; samplers refuse to start above it.
        origin: where it was loaded from; None if unknown.
    """

    data_shape: tuple[int, ...]
    num_classes: int
    class_names: list[str] | None = None
    token_channels: int = 0
    sigma_data: float
    sigma_max: float = math.inf
    origin: Origin | None = None

    @property
    def conditional(self) -> bool:
        """Whether the denoiser has a condition, labels or embeddings."""
        return bool(self.num_classes or self.token_channels)

    @abstractmethod
    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return E[x_0 | x] `(B, *data_shape)` at noise level `sigma` (B,) or (); float32 in and out."""

    def grid(self, num_steps: int) -> Grid:
        """Return the noise levels of a sampler that was given `num_steps` alone; EDM's `KarrasGrid` by default."""
        return KarrasGrid(num_steps)

    def predict(self, x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
        """Return the prediction at one point, by itself; that of a model which predicts variances holds them."""
        return Prediction(self(x, sigma, condition))

    def start(self, trajectory: Trajectory) -> Predict:
        """Return the prediction function for one trajectory, with new state. Each call counts as one evaluation."""

        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            trajectory.evaluations += 1
            return self.predict(x, sigma, condition)

        return predict

    def resolve(self, models: Models) -> Denoiser:
        """Return this denoiser with all references to models replaced by the models; itself if it has none."""
        return self

    @property
    def unadapted(self) -> Denoiser | None:
        """The model that this one adapts by low-rank additions, whose weights it shares; None if there is none."""
        return None

    @property
    def merged(self) -> Denoiser:
        """A copy with low-rank additions added to the weights; the model itself if there are none."""
        return self

    def constrain(self) -> None:
        """Project the parameters after an optimizer step (forced weight normalization); nothing by default."""


class DerivedDenoiser(Denoiser):
    """Base of denoisers made of another one, with its shapes, its condition and its noise levels."""

    @property
    @abstractmethod
    def underlying(self) -> Denoiser:
        """The denoiser that this one is made of."""

    @property
    def data_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of one x."""
        return self.underlying.data_shape

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of labels."""
        return self.underlying.num_classes

    @property
    def token_channels(self) -> int:  # type: ignore[override]
        """C of embeddings."""
        return self.underlying.token_channels

    @property
    def sigma_data(self) -> float:  # type: ignore[override]
        """Standard deviation of the data."""
        return self.underlying.sigma_data

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        """Highest noise level."""
        return self.underlying.sigma_max

    def grid(self, num_steps: int) -> Grid:
        """Return the default grid of the denoiser that this one is made of."""
        return self.underlying.grid(num_steps)
