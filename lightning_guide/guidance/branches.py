"""The model under another condition than the sample's: the negatives of classifier-free guidance and its kin.

Such a negative has weights and input in common with its positive, so that both can run as one batch (`Branches`).

Negatives made out of the positive prediction: what they need is evaluated once and shared.

Self-attention guidance blurs what the positive predicted, where the positive looked; masked sliding windows replace a
part of what it predicted. Such a negative can be had by itself, as any denoiser; next to its positive, in `Guided`,
the positive is evaluated once for both.

The positive and the negatives of one trajectory, evaluated so that nothing they have in common is computed twice.

* A `PredictionNegative` of the positive reads its prediction instead of making it again.
* An `ConditionReplacement` of the positive runs with it as one batch while both are needed and the batch is small: on
  a CPU
  that takes .59 to .75 times as long as two calls at 1 to 16 samples, .93 times at 64 and .98 at 256
  (scripts/bench_joint.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_guide.conditioning import concatenate_conditions
from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory
from lightning_guide.guidance.base import Guidance, Main
from lightning_guide.guidance.combinations.base import Branch

__all__ = ["Branches", "ConditionReplacement", "NegativeOfPrediction", "PredictionNegative", "Replace"]


Replace = Callable[[Tensor, Tensor | None], Tensor | None]


"""(x (B, *), condition of the samples) -> the condition that takes its place."""


class ConditionReplacement(Guidance, ABC):
    """D(x, sigma, c') with another condition c'. One evaluation."""

    def __init__(self, positive: Denoiser | None = None) -> None:
        """`positive` is the model with labels; default: the one under evaluation."""
        super().__init__()
        self.positive = positive if positive is not None else Main()

    @abstractmethod
    def start_condition(self, trajectory: Trajectory) -> Replace:
        """How conditions are replaced along one trajectory."""

    def start(self, trajectory: Trajectory) -> Predict:
        """The denoiser's own trajectory, under the other condition."""
        predict, other = self.positive.start(trajectory), self.start_condition(trajectory)
        return lambda x, sigma, condition: predict(x, sigma, other(x, condition))


NegativeOfPrediction = Callable[[Prediction, Tensor, Tensor, Tensor | None], Prediction]


"""(positive prediction, x (B, *), sigma (), condition) -> negative prediction, all at the same point."""


class PredictionNegative(Guidance, ABC):
    """Base of negatives made out of the prediction of their positive."""

    @abstractmethod
    def start_from_prediction(self, model: Denoiser, trajectory: Trajectory) -> tuple[Denoiser, NegativeOfPrediction]:
        """What runs in the place of `model` so that this can read it along `trajectory`, and the negative.

        `model` is the positive, or what another reaction has put in its place; it predicts the same to the bit.
        """

    def start(self, trajectory: Trajectory) -> Predict:
        """The negative by itself: it evaluates its positive first."""
        model, react = self.start_from_prediction(self.positive, trajectory)
        positive = model.start(trajectory)
        return lambda x, sigma, condition: react(positive(x, sigma, condition), x, sigma, condition)


SMALL = 64  # samples that run with their negatives as one batch


class Branches:
    """A positive and its negatives along one trajectory."""

    def __init__(self, positive: Denoiser, negatives: Sequence[Denoiser], trajectory: Trajectory) -> None:
        """Starts all of them; `positive` itself must be what its reactions and other conditions are made of."""
        self.trajectory = trajectory
        self.reactions: dict[int, NegativeOfPrediction] = {}
        self.conditions: dict[int, Replace] = {}
        self.others: dict[int, Predict] = {}
        model = positive
        reacting = any(
            isinstance(negative, PredictionNegative) and negative.positive is positive for negative in negatives
        )
        for i, negative in enumerate(negatives):
            shared = getattr(negative, "positive", None) is positive
            if shared and isinstance(negative, PredictionNegative):
                model, self.reactions[i] = negative.start_from_prediction(model, trajectory)
            elif (
                shared
                and isinstance(negative, ConditionReplacement)
                and not (reacting or isinstance(positive, Guidance))
            ):
                self.conditions[i] = negative.start_condition(trajectory)
            else:
                self.others[i] = negative.start(trajectory)
        self.positive = model.start(trajectory)

    def at(
        self, weights: Sequence[float], x: Tensor, sigma: Tensor, condition: Tensor | None
    ) -> tuple[Branch, list[Branch]]:
        """The positive and all negatives as functions of (x, sigma), to be called at this point or others."""
        joint = [i for i in self.conditions if weights[i] not in (0, 1) and len(x) <= SMALL]
        found: list[Prediction] = []

        def together(at: Tensor) -> list[Prediction]:
            """Predictions of the positive and of `joint`, if they are wanted here, without gradients."""
            if not joint or at is not x or torch.is_grad_enabled():
                return []
            if not found:
                found.extend(self._together([condition, *(self.conditions[i](x, condition) for i in joint)], x, sigma))
            return found

        def positive(x: Tensor, sigma: Tensor) -> Prediction:
            predictions = together(x)
            return predictions[0] if predictions else self.positive(x, sigma, condition)

        once = _once(positive) if self.reactions else positive

        def negative(i: int) -> Branch:
            def branch(x: Tensor, sigma: Tensor) -> Prediction:
                if i in self.reactions:
                    return self.reactions[i](once(x, sigma), x, sigma, condition)
                if i in self.others:
                    return self.others[i](x, sigma, condition)
                predictions = together(x) if i in joint else []
                if predictions:
                    return predictions[1 + joint.index(i)]
                return self.positive(x, sigma, self.conditions[i](x, condition))

            return branch

        return once, [negative(i) for i in range(len(weights))]

    def _together(self, conditions: Sequence[Tensor | None], x: Tensor, sigma: Tensor) -> list[Prediction]:
        """Predictions at `x` (B, *) under each of the conditions, in one call that counts for as many."""
        condition = concatenate_conditions(conditions, len(x), x.device)
        sigmas = sigma if sigma.ndim == 0 else sigma.repeat(len(conditions))
        prediction = self.positive(torch.cat([x] * len(conditions)), sigmas, condition)
        self.trajectory.evaluations += len(conditions) - 1
        return [Prediction(clean) for clean in prediction.clean.chunk(len(conditions))]


def _once(branch: Branch) -> Branch:
    """`branch`, evaluated again only at another point than the last one."""
    last: list[tuple[Tensor, Tensor, Prediction]] = []

    def at(x: Tensor, sigma: Tensor) -> Prediction:
        if not (last and x is last[0][0] and sigma is last[0][1]):
            last[:] = [(x, sigma, branch(x, sigma))]
        return last[0][2]

    return at
