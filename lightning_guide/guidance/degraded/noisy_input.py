r"""Extra input noise: a synthetic degradation of a finished model.

Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", https://arxiv.org/abs/2406.02507, section
on synthetic degradations: a model with 10 % more noise in its input, guided by itself with 20 % more at w = 2, was as
good as without.
"""

from __future__ import annotations

import math

from torch import Tensor

from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory, expand
from lightning_guide.guidance.guidance import Guidance
from lightning_guide.guidance.references import Main

__all__ = ["NoisyInput"]


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
