"""Adaptive guidance (AG): negatives are left out for good once their predictions agree with the positive.

Castillo et al. 2023, "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models",
https://arxiv.org/abs/2312.12487: classifier-free guidance ends as soon as the cosine similarity of the two predictions
exceeds a threshold, since the steps of guidance and of the model have become one. Only the abstract was read. The
similarity is that of the clean estimates here, which starts low and rises; that of the noises is high at both ends of
a trajectory. LinearAG, which replaces some negatives by fitted affine combinations of earlier predictions, is not
included: its coefficients have to be fitted for each model. `ReusedDifference` needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_guide.denoiser import Prediction, Trajectory
from lightning_guide.guidance.combinations.base import (
    TINY,
    Branch,
    Combination,
    Negatives,
    Wrapping,
    dot,
    row_norm,
)

__all__ = ["UntilAgreement"]


class UntilAgreement(Wrapping):
    """Adaptive guidance: an inner combination until cos(D_pos, D_neg) > threshold, from the next step on D_pos alone.

    Each sample ends by itself, whatever its batch. The negatives are called until all samples of the batch have ended,
    which changes no sample: a batch costs what its slowest sample costs, and only small batches save calls. Of several
    negatives all have to agree. At a threshold of 1 or more the inner rule never ends; at -1 it ends after one step.

    To leave a call out, the host has to know: it waits for the device once in each step with guidance, from the second
    to that in which the last sample ends.
    """

    def __init__(self, threshold: float = 0.99, *, combination: Combination | None = None) -> None:
        """`threshold` of the cosine similarity of the clean estimates; `combination` defaults to `Plain`.

        Raises:
            ValueError: if `threshold` is below -1 or not a number.
        """
        if not threshold >= -1:
            raise ValueError(f"UntilAgreement needs a cosine similarity of -1 or more as threshold, got {threshold}")
        self.threshold, self.combination = threshold, self.watch(combination)
        self._agreed: Tensor | None = None  # samples (B, 1, ..., 1) that have ended,
        self._next: Tensor | None = None  # and those that will have from the next step on
        self._step, self._ended = 0, False

    def weights(self, weights: Sequence[float], trajectory: Trajectory) -> list[float]:
        """Return those of the inner rule, 1 once all samples have ended; what a step found takes effect in the next."""
        inner = super().weights(weights, trajectory)
        if trajectory.step != self._step:
            self._step, self._agreed = trajectory.step, self._next
            if self._agreed is not None and not self._ended and any(weight != 1 for weight in inner):
                self._ended = bool(self._agreed.all())  # waits: whether a network is called is up to the host
        return [1.0] * len(weights) if self._ended else inner

    def is_off(self, weights: Sequence[float], trajectory: Trajectory) -> bool:
        """Return whether all samples have ended, or the inner rule is off."""
        return self._ended or super().is_off(weights, trajectory)

    def combine(
        self, positive: Branch, negatives: Negatives, x: Tensor, sigma: Tensor, trajectory: Trajectory
    ) -> Prediction:
        """Return the inner rule for samples that have not ended, the positive for the others."""
        found: dict[int, Prediction] = {}

        def recording(i: int, branch: Branch) -> Branch:
            def recorded(at: Tensor, level: Tensor) -> Prediction:
                prediction = branch(at, level)
                return found.setdefault(i, prediction) if at is x else prediction

            return recorded

        recorded = [(weight, recording(i, negative)) for i, (weight, negative) in enumerate(negatives)]
        guided = super().combine(recording(-1, positive), recorded, x, sigma, trajectory)
        pos = found.pop(-1, None)
        if pos is not None and found:
            similar = torch.stack([_cosine(pos.clean, neg.clean) for neg in found.values()]).amin(0)
            agreed = similar > self.threshold
            self._next = agreed if self._next is None else self._next | agreed
        if pos is None or self._agreed is None:
            return guided
        clean = torch.where(self._agreed, pos.clean, guided.clean)
        if guided.noise is None:
            return replace(guided, clean=clean)
        return replace(guided, clean=clean, noise=torch.where(self._agreed, pos.direction(x, sigma), guided.noise))


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine similarity of each sample, float64, (B, 1, ..., 1)."""
    return dot(a, b) / (row_norm(a) * row_norm(b)).clamp(min=TINY)
