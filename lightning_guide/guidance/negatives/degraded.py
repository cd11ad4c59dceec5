"""Dropout while sampling: a synthetic degradation of a finished model.

Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", https://arxiv.org/abs/2406.02507, section
on synthetic degradations: a model with 5 % dropout, guided by itself with 10 % at w = 2.25, was as good as without.

Extra input noise: a synthetic degradation of a finished model.

Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", https://arxiv.org/abs/2406.02507, section
on synthetic degradations: a model with 10 % more noise in its input, guided by itself with 20 % more at w = 2, was as
good as without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory, expand
from lightning_guide.guidance.base import Guidance, Main
from lightning_guide.guidance.perturbation import Replacement

__all__ = ["NoisyInput", "SamplingDropout"]


class SamplingDropout(Replacement):
    """x m / (1 - p), m = 0 with probability p, else 1, for each sample, number and call; p = 0 changes nothing.

    `Perturbed([SamplingDropout(0.1)])` is a denoiser, to be a positive or a negative. It drops whether the network is
    in training mode or not, and whatever rate it was trained with, since it takes the place of the dropout layers.
    """

    kind = "dropout"

    def __init__(self, probability: float = 0.1, *, layers: Sequence[str] | None = None) -> None:
        """`probability` p in [0, 1); `layers`: modules whose result is replaced, by default the dropout layers.

        Raises:
            ValueError: if `probability` is outside.
        """
        super().__init__(layers=layers)
        if not 0 <= probability < 1:
            raise ValueError(f"SamplingDropout needs a probability in [0, 1), got {probability}")
        self.probability = probability

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Dropout from the streams of the samples."""
        return _Dropout(self.probability, trajectory) if self.probability else module


class _Dropout(nn.Module):
    """Dropout of one trajectory."""

    def __init__(self, probability: float, trajectory: Trajectory) -> None:
        super().__init__()
        self.probability, self.trajectory = probability, trajectory
        self.purpose = f"dropout {probability}"  # two rates have streams that do not disturb each other

    def forward(self, x: Tensor) -> Tensor:
        kept = self.trajectory.seeds.uniform(self.purpose, x.shape[1:], x.device) >= self.probability
        return x * kept / (1 - self.probability)


class NoisyInput(Guidance):
    r"""D(x + sigma sqrt((1 + a)^2 - 1) n, (1 + a) sigma): the denoiser of a noisier view of the same x_0. One call.

    With x = x_0 + sigma noise the input is x_0 with noise of (1 + a) sigma, and the network is told so. The exact
    denoiser becomes E[x_0 | noisier view], whose error is that of the level (1 + a) sigma: worse than at sigma, the
    more the larger a. n is fresh at each call. Whether the paper's network is told was not found out; one that is not
    leaves some of the extra noise in its estimate.

    A negative at a shifted input x~ returns D(x~) - (x~ - x) where x~ is meant to be another state with noise of the
    same level, so that the *noise* it finds is carried over to x. Here the *clean* estimate is carried over, since
    x_0 is what the two views have in common: subtracting x~ - x would put white noise of sqrt((1 + a)^2 - 1) sigma
    into it.
    """

    def __init__(self, amount: float = 0.1, *, positive: Denoiser | None = None) -> None:
        """`amount` a >= 0 by which the noise level rises; `positive`: the model, by default the one evaluated.

        Raises:
            ValueError: if `amount` is negative or not finite.
        """
        super().__init__()
        if not (amount >= 0 and math.isfinite(amount)):
            raise ValueError(f"NoisyInput needs a finite amount >= 0 (0.1: 10 % more noise), got {amount}")
        self.amount = amount
        self.positive = positive if positive is not None else Main()

    def start(self, trajectory: Trajectory) -> Predict:
        """The denoiser's own trajectory, at noisier inputs."""
        predict = self.positive.start(trajectory)
        if self.amount == 0:
            return predict
        purpose = f"input noise {self.amount}"  # two amounts have streams that do not disturb each other
        spread = math.sqrt(self.amount * (2 + self.amount))

        def noisier(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            n = trajectory.seeds.normal(purpose, x.shape[1:], x.device).to(x.dtype)
            clean = predict(x + spread * expand(sigma, x) * n, (1 + self.amount) * sigma, condition).clean
            return Prediction(clean)

        return noisier
