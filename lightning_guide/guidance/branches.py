"""Positive and negatives of one trajectory, evaluated so that nothing they have in common is computed twice.

* `ConditionReplacement`: the model under another condition than that of the sample, as in classifier-free guidance. It
  has weights and input in common with its positive, and runs with it as one batch while both are needed and the batch
  is small: on a CPU that takes 0.59 to 0.75 times as long as two calls at 1 to 16 samples, 0.93 times at 64 and 0.98 at
  256 (scripts/benchmarks/joint.py). Large images run one after another, to save memory.
* `Perturbed`: the model with replaced submodules. It runs with its positive and shares all other stages (`JointModel`).
* `PredictionNegative`: a negative computed from the positive prediction. Self-attention guidance blurs the prediction
  where the attention of the positive is high; masked sliding windows replace a part of it.

Either is a denoiser by itself, too. `Guided` evaluates their common positive once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory
from lightning_guide.guidance.base import Guidance, Main
from lightning_guide.guidance.combinations.base import Branch
from lightning_guide.guidance.perturbation import Perturbed
from lightning_guide.guidance.stages import JointModel

__all__ = ["Branches", "ConditionReplacement", "NegativeOfPrediction", "PredictionNegative", "Replace"]


Replace = Callable[[Tensor, Tensor | None], Tensor | None]
"""(x (B, *), condition of the samples) -> the condition that replaces it."""


class ConditionReplacement(Guidance, ABC):
    """Base of negatives D(x, sigma, c') with another condition c'. One evaluation."""

    def __init__(self, positive: Denoiser | None = None) -> None:
        """`positive` is the model with labels; default: the one under evaluation."""
        super().__init__()
        self.positive = positive if positive is not None else Main()

    @abstractmethod
    def start_condition(self, trajectory: Trajectory) -> Replace:
        """Return the function that replaces conditions along one trajectory."""

    def start(self, trajectory: Trajectory) -> Predict:
        """Return the model of one trajectory, under the other condition."""
        predict, other = self.positive.start(trajectory), self.start_condition(trajectory)
        return lambda x, sigma, condition: predict(x, sigma, other(x, condition))


NegativeOfPrediction = Callable[[Prediction, Tensor, Tensor, Tensor | None], Prediction]
"""(positive prediction, x (B, *), sigma (), condition) -> negative prediction, all at the same point."""


class PredictionNegative(Guidance, ABC):
    """Base of negatives computed from the prediction of their positive."""

    @abstractmethod
    def start_from_prediction(self, model: Denoiser, trajectory: Trajectory) -> tuple[Denoiser, NegativeOfPrediction]:
        """Return a replacement of `model` that this negative can read along `trajectory`, and the negative.

        `model` is the positive, or the replacement made by another such negative. The replacement must predict the
        same to the bit.
        """

    def start(self, trajectory: Trajectory) -> Predict:
        """Return the negative by itself, which evaluates its positive first."""
        model, negative = self.start_from_prediction(self.positive, trajectory)
        positive = model.start(trajectory)
        return lambda x, sigma, condition: negative(positive(x, sigma, condition), x, sigma, condition)


SMALL = 64  # most samples that run with their negatives as one batch
MEMORY = 2**20  # and most numbers in their x, as activations take memory in proportion: 16 latents of 1024x1024 images


class Branches:
    """A positive and its negatives along one trajectory.

    Work is shared by identity: a negative counts as made of the positive if its attribute `positive` is the very object
    `positive`, not an equal one. Any other negative, a copy of the model included, is evaluated by itself, with the
    same result in network calls of its own. `Guided.resolve` keeps the identity when it replaces references.
    """

    def __init__(self, positive: Denoiser, negatives: Sequence[Denoiser], trajectory: Trajectory) -> None:
        """Start all of them; a negative with another positive is not shared, see above."""
        self.from_prediction: dict[int, NegativeOfPrediction] = {}
        self.conditions: dict[int, Replace] = {}
        self.others: dict[int, Predict] = {}
        model, perturbed = positive, {}
        prediction_shared = any(
            isinstance(negative, PredictionNegative) and negative.positive is positive for negative in negatives
        )
        # only plain models run as one batch: guidances draw, and observed attention is read, for the samples alone
        joinable = not (prediction_shared or isinstance(positive, Guidance))
        for i, negative in enumerate(negatives):
            shared = getattr(negative, "positive", None) is positive
            if shared and isinstance(negative, PredictionNegative):
                model, self.from_prediction[i] = negative.start_from_prediction(model, trajectory)
            elif shared and joinable and isinstance(negative, ConditionReplacement):
                self.conditions[i] = negative.start_condition(trajectory)
            elif joinable and isinstance(negative, Perturbed) and negative.model() is positive:
                copy = negative.network(trajectory)
                self.others[i] = copy.start(trajectory)
                perturbed[i] = [name for _, names in negative.layers() for name in names], copy
            else:
                self.others[i] = negative.start(trajectory)
        self.positive = model.start(trajectory)
        self.joint = JointModel(positive, perturbed, trajectory) if joinable else None

    def at(
        self, called: Sequence[bool], x: Tensor, sigma: Tensor, condition: Tensor | None
    ) -> tuple[Branch, list[Branch]]:
        """Return the positive and all negatives as functions of (x, sigma), for this point or others.

        The negatives that will be `called` at this point share the call of the positive where they can.
        """
        small = len(x) <= SMALL and x.numel() <= MEMORY
        on = {i for i, needed in enumerate(called) if needed}
        conditions = [i for i in self.conditions if small and i in on]
        copies = [i for i in self.joint.copies if i in on] if self.joint else []
        found: dict[int | None, Prediction] = {}

        def predictions(at: Tensor) -> dict[int | None, Prediction]:
            """Joint predictions of the positive (None) and negatives, at this x and without gradients; else none."""
            if self.joint is None or not conditions + copies or at is not x or torch.is_grad_enabled():
                return {}
            if not found:
                given = [condition, *(self.conditions[i](x, condition) for i in conditions)]
                branches = self.joint(x, sigma, given, copies, together=small)
                found.update(zip([None, *conditions, *copies], branches, strict=True))
            return found

        def positive(x: Tensor, sigma: Tensor) -> Prediction:
            return predictions(x).get(None) or self.positive(x, sigma, condition)

        once = _once(positive) if self.from_prediction else positive

        def negative(i: int) -> Branch:
            def branch(x: Tensor, sigma: Tensor) -> Prediction:
                if i in self.from_prediction:
                    return self.from_prediction[i](once(x, sigma), x, sigma, condition)
                if i in conditions + copies and (joint := predictions(x)):
                    return joint[i]
                if i in self.others:
                    return self.others[i](x, sigma, condition)
                return self.positive(x, sigma, self.conditions[i](x, condition))

            return branch

        return once, [negative(i) for i in range(len(called))]


def _once(branch: Branch) -> Branch:
    """Return `branch` with a memory of its last point, so that it is evaluated once there."""
    last: list[tuple[Tensor, Tensor, Prediction]] = []

    def at(x: Tensor, sigma: Tensor) -> Prediction:
        if not (last and x is last[0][0] and sigma is last[0][1]):
            last[:] = [(x, sigma, branch(x, sigma))]
        return last[0][2]

    return at
