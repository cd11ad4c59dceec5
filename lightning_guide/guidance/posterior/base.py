"""Posterior sampling: denoisers of x given its linear measurement y = A x + noise n."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lightning_guide.conditioning import condition_for
from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory, expand
from lightning_guide.guidance.base import Guidance, Main
from lightning_guide.objectives.measurement import Measurement
from lightning_guide.objectives.spectrum import LinearProblem
from lightning_guide.samplers.base import PredictAt

__all__ = ["PosteriorGuidance", "PosteriorSteps", "differentiated", "moved"]


class PosteriorGuidance(Guidance):
    """Base of posterior sampling: what the denoiser predicts, given the measurements of the samples.

    These methods change the estimate of the clean sample and go with any sampler; `PosteriorSteps` do not.
    """

    def __init__(self, measurement: Measurement, *, positive: Denoiser | None = None) -> None:
        """Guide `positive` (default: the model under evaluation) by the `measurement`.

        Raises:
            ValueError: if it is another energy, without a linear operator.
        """
        super().__init__()
        self.measurement, self.positive = measurement, positive if positive is not None else Main()

    def start(self, trajectory: Trajectory) -> Predict:
        """Return the guided denoiser of one trajectory, whose measurements are drawn here.

        Raises:
            ValueError: as `Measurement.problem`.
        """
        positive = self.positive.start(trajectory)
        problem = self.measurement.problem(trajectory)

        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            given = condition_for(condition, self.positive)
            return self.predict_given(lambda x, sigma: positive(x, sigma, given), x, sigma, problem, trajectory)

        return predict

    @abstractmethod
    def predict_given(
        self, predict: PredictAt, x: Tensor, sigma: Tensor, problem: LinearProblem, trajectory: Trajectory
    ) -> Prediction:
        """Return the prediction at `x` (B, *) and `sigma` () given the measurements of `problem`.

        `predict` is the positive: each call costs one evaluation.
        """


class PosteriorSteps(PosteriorGuidance):
    """Base of posterior sampling by whole steps with noise of their own: the prediction leads `Euler` to the next x."""

    def start(self, trajectory: Trajectory) -> Predict:
        """Return the guided denoiser of one trajectory.

        Raises:
            ValueError: if the sampler does not go along the noise of one prediction; as for other methods.
        """
        if not trajectory.single:
            raise ValueError(
                f"{type(self).__name__} draws the noise of its steps: sample it by Euler, or Euler in TimeTravel or "
                "Restart, not by a sampler with more stages, a memory or noise of its own"
            )
        return super().start(trajectory)

    def arrive(self, x_next: Tensor, clean: Tensor, trajectory: Trajectory) -> Prediction:
        """Return the prediction of `clean` (B, *) by which `Euler` arrives at `x_next` (B, *)."""
        if trajectory.sigma_next == 0:
            return Prediction(x_next)
        return Prediction(clean, (x_next - clean) / trajectory.sigma_next)


def differentiated(predict: PredictAt, x: Tensor, sigma: Tensor) -> tuple[Prediction, Callable[[Tensor], Tensor]]:
    """Return the prediction at `x`, and the function v -> J^T v (B, *) with J = dD/dx, by one backward pass a call.

    J^T sigma^2 is the covariance of x_0 given x if D is exact, and J is symmetric.
    """
    outside = torch.is_grad_enabled() and x.requires_grad  # the caller differentiates: what is added is a constant
    with torch.enable_grad():
        at = x if outside else x.detach().requires_grad_()
        prediction = predict(at, sigma)

    def product(v: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(
            prediction.clean, at, v, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return found

    if outside:
        return prediction, product
    noise = None if prediction.noise is None else prediction.noise.detach()
    return replace(prediction, clean=prediction.clean.detach(), noise=noise), product


def moved(prediction: Prediction, delta: Tensor, sigma: Tensor) -> Prediction:
    """Return the prediction of D + `delta` (B, *), whose noise is implied by the new estimate."""
    noise = None if prediction.noise is None else prediction.noise - delta / expand(sigma, delta)
    return replace(prediction, clean=prediction.clean + delta, noise=noise)
