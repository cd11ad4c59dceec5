"""The base of gradient guidances: D + sigma^2 G with G = c J, per sample, from one backward pass at most.

Guo et al. 2024, https://arxiv.org/abs/2404.14743. The objective enters through its gradient g at an earlier sample
alone: a sample is asked to have the label y = g^T x_0 + s e. g and y belong to each sample; they are data of the
guidance, set for a round of samples by `toward`, which hands back a guidance and changes none. The variance-exploding
form of the paper's formulas is derived in `strengths`.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory, expand
from lightning_guide.guidance.base import Guidance, Main
from lightning_guide.guidance.gradient.strengths import PaperStrength, Slope, Strength

__all__ = ["GradientGuidance", "Linearization", "check_seen"]


@dataclass(frozen=True)
class Linearization:
    """The label v = g^T seen(D) at one point x: `prediction` and, of each sample, `value` v (B,), `jacobian` J (B, *).

    `along` (B,) is u^T J with u the gradient of v with respect to D, which is g unless there is a decoder.
    """

    prediction: Prediction
    value: Tensor
    jacobian: Tensor
    along: Tensor


class GradientGuidance(Guidance):
    """D + sigma^2 c J, where a subclass says what J is; without a gradient it is its `positive`.

    Attributes:
        gradient: g (B or 1, *seen_shape), None for no guidance.
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
        """Guides `positive` (default: the model under evaluation).

        Args:
            strength: gives c; default `PaperStrength()`.
            every: guide in the steps 0, `every`, 2 `every` ... only; the others cost one plain evaluation.
            cap: largest root mean square of sigma G, the change of the predicted noise, whose own is 1; None: no limit.
            gradient: g (*seen_shape), the same for all samples; loops set their own by `toward`.
            target: y of that gradient.
            positive: the denoiser that is guided.

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
        """This guidance with g = `gradient` (B or 1, *seen_shape) and y = `target` (B or 1,), for a batch of B.

        Raises:
            ValueError: if there is not one target for each gradient, or one of them is not finite.
        """
        if target.shape != gradient.shape[:1]:
            raise ValueError(f"{tuple(target.shape)} targets do not fit gradients of shape {tuple(gradient.shape)}")
        if not bool(gradient.isfinite().all() & target.isfinite().all()):
            raise ValueError("a gradient or target of the guidance is not finite")
        other = copy.copy(self)
        other.gradient, other.target = gradient.detach(), target.detach()
        return other

    def seen(self, x: Tensor) -> Tensor:
        """What the objective sees of clean samples `x` (B, *): themselves, unless there is a decoder."""
        return x

    @abstractmethod
    def linearize(
        self, predict: Predict, x: Tensor, sigma: Tensor, condition: Tensor | None, gradient: Tensor
    ) -> Linearization:
        """Prediction, label and J at `x` (B, *) for `gradient` g (B or 1, *seen_shape)."""

    def start(self, trajectory: Trajectory) -> Predict:
        """The guided denoiser of one trajectory."""
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
            return self._added(line.prediction, self._capped(score, sigma), sigma)

        return predict

    def _capped(self, score: Tensor, sigma: Tensor) -> Tensor:
        """`score` (B, *), shortened where sigma G is above the cap."""
        if self.cap is None:
            return score
        size = sigma * score.flatten(1).square().mean(1).sqrt()
        factor = (self.cap / size.clamp(min=torch.finfo(size.dtype).tiny)).clamp(max=1)
        return score * expand(factor, score)

    def _added(self, prediction: Prediction, score: Tensor, sigma: Tensor) -> Prediction:
        """The prediction of a score that is larger by `score`."""
        s = expand(sigma, score)
        noise = None if prediction.noise is None else prediction.noise - s * score
        return Prediction(prediction.clean + s**2 * score, noise)

    def _check_rows(self, batch: int, rows: int) -> None:
        """Refuses another number of gradients than samples."""
        if rows not in (1, batch):
            name = type(self).__name__
            raise ValueError(f"{name} holds {rows} gradients for a batch of {batch}; expected 1 or {batch}")


def check_seen(gradient: Tensor, seen: Tensor) -> None:
    """Refuses a `gradient` (B or 1, *) of another shape than what the objective sees, `seen` (B, *).

    Raises:
        ValueError: with both shapes.
    """
    if gradient.shape[1:] != seen.shape[1:]:
        raise ValueError(
            f"the gradient of the objective has shape {tuple(gradient.shape[1:])}, the samples that it is to lead have "
            f"{tuple(seen.shape[1:])}"
        )
