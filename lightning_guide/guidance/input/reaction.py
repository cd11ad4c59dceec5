r"""Negatives made out of the positive prediction: what they need is evaluated once and shared.

Self-attention guidance blurs what the positive predicted, where the positive looked; masked sliding windows replace a
part of what it predicted. Such a negative can be had by itself, as any denoiser; next to its positive, in `Reacting`,
the positive is evaluated once for both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from lightning_guide.denoiser import Denoiser, Models, Predict, Prediction, Trajectory
from lightning_guide.guidance.combination import Branch
from lightning_guide.guidance.guided import Guidance, Guided
from lightning_guide.guidance.weights import weight_at

__all__ = ["React", "Reacting", "Reaction"]

React = Callable[[Prediction, Tensor, Tensor, Tensor | None], Prediction]
"""(positive prediction, x (B, *), sigma (), condition) -> negative prediction, all at the same point."""


class Reaction(Guidance, ABC):
    """Base of negatives made out of the prediction of their positive."""

    @abstractmethod
    def attach(self, model: Denoiser, trajectory: Trajectory) -> tuple[Denoiser, React]:
        """What runs in the place of `model` so that this can read it along `trajectory`, and the negative.

        `model` is the positive, or what another reaction has put in its place; it predicts the same to the bit.
        """

    def start(self, trajectory: Trajectory) -> Predict:
        """The negative by itself: it evaluates its positive first."""
        model, react = self.attach(self.positive, trajectory)
        positive = model.start(trajectory)
        return lambda x, sigma, condition: react(positive(x, sigma, condition), x, sigma, condition)


class Reacting(Guided):
    """`Guided`, in which a negative made out of the same positive costs no second evaluation of it.

    The negatives may be of any kind, so that this is CFG with self-attention guidance in three evaluations:
    ``Reacting([Unconditional(), BlurredInput()], [4.0, 1.75])``.
    """

    def resolve(self, models: Models) -> Denoiser:
        """As `Guided.resolve`; negatives that had the same positive as this guidance still have."""
        resolved = super().resolve(models)
        assert isinstance(resolved, Reacting)
        for before, after in zip(self.negatives, resolved.negatives, strict=True):
            if isinstance(before, Reaction) and before.positive is self.positive:
                after.positive = resolved.positive
        return resolved

    def start(self, trajectory: Trajectory) -> Predict:
        """The guided denoiser of one trajectory."""
        model, reactions, others = self.positive, dict[int, React](), dict[int, Predict]()
        for i, negative in enumerate(self.negatives):
            assert isinstance(negative, Denoiser)
            if isinstance(negative, Reaction) and negative.positive is self.positive:
                model, reactions[i] = negative.attach(model, trajectory)
            else:
                others[i] = negative.start(trajectory)
        positive = model.start(trajectory)
        combine = self.combination.start(trajectory)

        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            once = _once(lambda x, sigma: positive(x, sigma, condition))

            def branch(i: int) -> Branch:
                if i in reactions:
                    return lambda x, sigma: reactions[i](once(x, sigma), x, sigma, condition)
                return lambda x, sigma: others[i](x, sigma, condition)

            weighted = [(weight_at(weight, trajectory.sigma), branch(i)) for i, weight in enumerate(self.weights)]
            return combine(once, weighted, x, sigma)

        return predict


def _once(branch: Branch) -> Branch:
    """`branch`, evaluated again only at another point than the last one, told by where x and sigma lie in memory."""
    last: list[tuple[Tensor, Tensor, Prediction]] = []

    def at(x: Tensor, sigma: Tensor) -> Prediction:
        if not last or not (x.is_set_to(last[0][0]) and sigma.is_set_to(last[0][1])):
            last[:] = [(x, sigma, branch(x, sigma))]
        return last[0][2]

    return at
