"""Gradient guidance, Guo et al. 2024, https://arxiv.org/abs/2404.14743: base class of D + sigma^2 G with G = c J.

J is computed per sample with one backward pass at most. The objective enters only through its gradient g at an earlier
sample: the guidance conditions on the label y = g^T x_0 + s e. g and y are given per sample. They are data of the
guidance; `toward` returns a new guidance with those of one round and does not mutate. The variance-exploding form of
the paper's formulas is derived in `strengths`.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory, expand
from lightning_guide.guidance.base import Guidance, Main
from lightning_guide.guidance.gradient.strengths import PaperStrength, Slope, Strength

__all__ = ["GradientGuidance", "Linearization", "check_gradient_shape"]


@dataclass(frozen=True)
class Linearization:
    """Linearized label v = g^T objective_input(D) at one point x.

    Attributes:
        prediction: the plain prediction D.
        value: v (B,).
        jacobian: J (B, *).
        along: u^T J (B,) with u the gradient of v with respect to D, which is g without a decoder.
    """

    prediction: Prediction
    value: Tensor
    jacobian: Tensor
    along: Tensor


class GradientGuidance(Guidance):
    """Gradient guidance D + sigma^2 c J, with J defined by the subclass; without a gradient, the `positive` itself.

    Attributes:
        gradient: g (B or 1, *input_shape), None for no guidance.
        target: y (B or 1,).
    """

    strength: Strength
    gradient: Tensor | None
    target: Tensor | None

    def __init__(
        self,
        strength: Strength | None = None,
        *,
        every: int = 1,
        cap: float | None = None,
        gradient: Sequence[Any] | Tensor | None = None,
        target: float | None = None,
        positive: Denoiser | None = None,
    ) -> None:
        """Guide `positive`.

        Args:
            strength: rule for c; default `PaperStrength()`.
            every: guide only in the steps 0, `every`, 2 `every` ...; the others cost one plain evaluation.
            cap: largest root mean square of sigma G, the change of the predicted noise (itself 1); None: no limit.
            gradient: g (*input_shape), the same for all samples; optimization loops set it by `toward`.
            target: y of that gradient.
            positive: the denoiser to guide; default: the model under evaluation.

        Raises:
            ValueError: if `every` is below 1, `cap` not positive, or only one of gradient and target is given.
        """
        super().__init__()
        if every < 1 or (cap is not None and not cap > 0):
            raise ValueError(f"{type(self).__name__} needs every >= 1 and cap > 0 or null, got {every} and {cap}")
        if (gradient is None) != (target is None):
            raise ValueError(f"{type(self).__name__} needs both gradient and target, or neither")
        self.strength = strength or PaperStrength()
        self.every, self.cap = every, cap
        self.positive = positive if positive is not None else Main()
        self.gradient = None if gradient is None else torch.as_tensor(gradient, dtype=torch.float32)[None]
        self.target = None if target is None else torch.tensor([float(target)])

    def toward(self, gradient: Tensor, target: Tensor) -> Self:
        """Return this guidance with g = `gradient` (B or 1, *input_shape) and y = `target` (B or 1,), for a batch of B.

        Raises:
            ValueError: if there is not one target for each gradient, or one of them is not finite.
        """
        if target.shape != gradient.shape[:1]:
            raise ValueError(f"{tuple(target.shape)} targets do not fit gradients of shape {tuple(gradient.shape)}")
        # waits once a batch of a round: a bad gradient would spoil all samples
        if not bool(gradient.isfinite().all() & target.isfinite().all()):
            raise ValueError("a gradient or target of the guidance is not finite")
        other = copy.copy(self)
        other.gradient, other.target = gradient.detach(), target.detach()
        return other

    def objective_input(self, x: Tensor) -> Tensor:
        """Return the input of the objective for clean samples `x` (B, *): `x`, or decoder(x) if there is a decoder."""
        return x

    @abstractmethod
    def linearize(
        self, predict: Predict, x: Tensor, sigma: Tensor, condition: Tensor | None, gradient: Tensor
    ) -> Linearization:
        """Return prediction, label and J at `x` (B, *) for `gradient` g (B or 1, *input_shape)."""

    def without_effect(self, steps: Sequence[Trajectory]) -> Iterator[str]:
        """Yield a sentence if there is no gradient to follow."""
        if self.gradient is None:
            yield f"{type(self).__name__} has no gradient and target, and guides only within an optimization by rounds"

    def start(self, trajectory: Trajectory) -> Predict:
        """Return the guided denoiser of one trajectory."""
        plain = self.positive.start(trajectory)
        if self.gradient is None or self.target is None:
            return plain
        g, y = self.gradient, self.target

        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            if trajectory.step % self.every:
                return plain(x, sigma, condition)
            self._check_rows(len(x), len(g))
            line = self.linearize(plain, x, sigma, condition, g.to(x))
            square = line.jacobian.flatten(1).square().sum(1)
            c = self.strength.at(Slope(y.to(x) - line.value, square, line.along, sigma))
            score = expand(c, x) * line.jacobian
            return self._add_score(line.prediction, self._cap_score(score, sigma), sigma)

        return predict

    def _cap_score(self, score: Tensor, sigma: Tensor) -> Tensor:
        """Shorten `score` (B, *) where sigma G is above the cap."""
        if self.cap is None:
            return score
        size = sigma * score.flatten(1).square().mean(1).sqrt()
        factor = (self.cap / size.clamp(min=torch.finfo(size.dtype).tiny)).clamp(max=1)
        return score * expand(factor, score)

    def _add_score(self, prediction: Prediction, score: Tensor, sigma: Tensor) -> Prediction:
        """Return the prediction with `score` added to its score."""
        s = expand(sigma, score)
        noise = None if prediction.noise is None else prediction.noise - s * score
        return replace(prediction, clean=prediction.clean + s**2 * score, noise=noise)

    def _check_rows(self, batch: int, rows: int) -> None:
        """Check that there is one gradient, or one for each sample."""
        if rows not in (1, batch):
            name = type(self).__name__
            raise ValueError(f"{name} holds {rows} gradients for a batch of {batch}; expected 1 or {batch}")


def check_gradient_shape(gradient: Tensor, inputs: Tensor) -> None:
    """Check that `gradient` (B or 1, *) has the shape of the objective's `inputs` (B, *).

    Raises:
        ValueError: with both shapes.
    """
    if gradient.shape[1:] != inputs.shape[1:]:
        raise ValueError(
            f"the gradient of the objective has shape {tuple(gradient.shape[1:])}, the samples to be guided have "
            f"{tuple(inputs.shape[1:])}"
        )
