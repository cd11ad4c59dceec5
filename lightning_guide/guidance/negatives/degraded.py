"""Synthetic degradations of a finished model: dropout while sampling, and extra input noise.

Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", https://arxiv.org/abs/2406.02507, section
on synthetic degradations. A model with 5 % dropout, guided by itself with 10 % at w = 2.25, was as good as without. A
model with 10 % more noise in its input, guided by itself with 20 % more at w = 2, was as good as without.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory, expand
from lightning_guide.guidance.base import Guidance, Main
from lightning_guide.guidance.perturbation import Replacement

__all__ = ["NoisyInput", "SamplingDropout"]


class SamplingDropout(Replacement):
    """Dropout while sampling: x m / (1 - p), m = 0 with probability p, else 1; p = 0 changes nothing.

    m is drawn for each sample, number and call. `Perturbed([SamplingDropout(0.1)])` is a denoiser, for use as a
    positive or a negative. It replaces the dropout layers, so neither training mode nor their rate matters.
    """

    kind = "dropout"

    def __init__(self, probability: float = 0.1, *, layers: Sequence[str] | None = None) -> None:
        """`probability` p in [0, 1); `layers`: modules that are replaced, by default the dropout layers.

        Raises:
            ValueError: if `probability` is outside.
        """
        super().__init__(layers=layers)
        if not 0 <= probability < 1:
            raise ValueError(f"SamplingDropout needs a probability in [0, 1), got {probability}")
        self.probability = probability

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Return dropout from the random streams of the samples."""
        return _Dropout(self.probability, trajectory) if self.probability else module


class _Dropout(nn.Module):
    """Dropout of one trajectory."""

    def __init__(self, probability: float, trajectory: Trajectory) -> None:
        super().__init__()
        self.probability, self.trajectory = probability, trajectory
        self.purpose = f"dropout {probability}"  # two rates have independent streams

    def forward(self, x: Tensor) -> Tensor:
        kept = self.trajectory.seeds.uniform(self.purpose, x.shape[1:], x.device) >= self.probability
        return x * kept / (1 - self.probability)


class NoisyInput(Guidance):
    r"""D(x + sigma sqrt((1 + a)^2 - 1) n, (1 + a) sigma): the denoiser of a noisier view of the same x_0. One call.

    With x = x_0 + sigma noise the input is x_0 with noise of (1 + a) sigma, the level that the network is called with.
    The exact denoiser becomes E[x_0 | noisier view], whose error is that of the level (1 + a) sigma: larger than at
    sigma, and growing with a. n is drawn at each call. Whether the paper's network receives the raised level is not
    known; a network that does not leaves some of the extra noise in its estimate.

    A negative at a shifted input x~ returns D(x~) - (x~ - x) if x~ is another state with noise of the same level, so
    that the *noise* found there is carried over to x. Here the *clean* estimate is carried over, since the two views
    have x_0 in common: subtracting x~ - x would add white noise of sqrt((1 + a)^2 - 1) sigma to it.
    """

    def __init__(self, amount: float = 0.1, *, positive: Denoiser | None = None) -> None:
        """`amount` a >= 0 by which the noise level rises; `positive`: the model, default: the model under evaluation.

        Raises:
            ValueError: if `amount` is negative or not finite.
        """
        super().__init__()
        if not (amount >= 0 and math.isfinite(amount)):
            raise ValueError(f"NoisyInput needs a finite amount >= 0 (0.1: 10 % more noise), got {amount}")
        self.amount = amount
        self.positive = positive if positive is not None else Main()

    def without_effect(self, steps: Sequence[Trajectory]) -> Iterator[str]:
        """Yield a sentence if there is no noise."""
        if self.amount == 0:
            yield "NoisyInput adds nothing with the amount 0"

    def start(self, trajectory: Trajectory) -> Predict:
        """Return the model of one trajectory, at noisier inputs."""
        predict = self.positive.start(trajectory)
        if self.amount == 0:
            return predict
        purpose = f"input noise {self.amount}"  # two amounts have independent streams
        spread = math.sqrt(self.amount * (2 + self.amount))

        def noisier(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            n = trajectory.seeds.normal(purpose, x.shape[1:], x.device).to(x.dtype)
            clean = predict(x + spread * expand(sigma, x) * n, (1 + self.amount) * sigma, condition).clean
            return Prediction(clean)

        return noisier
