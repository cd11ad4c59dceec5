"""Guidance by negatives, D = D_neg + w (D_pos - D_neg), for any number of negatives.

With several, D = D_pos + sum_i (w_i - 1) (D_pos - D_i) (Karras et al. 2024, https://arxiv.org/abs/2406.02507, appendix
B.2). w = 1 is off: that negative is not called. Papers that write s, gamma or omega mean w - 1.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Models, Predict, Prediction, Trajectory
from lightning_guide.guidance.base import Guidance, Main, Reference
from lightning_guide.guidance.branches import Branches
from lightning_guide.guidance.combinations.base import Combination, Plain
from lightning_guide.guidance.schedules import WeightSchedule, guides_at, weight_at

__all__ = ["Guided"]


class Guided(Guidance):
    """D = D_pos + sum_i (w_i - 1) (D_pos - D_i), or another `combination` of the same branches.

    With one negative and w = 3, D = D_neg + 3 (D_pos - D_neg) = 3 D_pos - 2 D_neg:

    Examples:
        >>> import torch
        >>> from lightning_guide.distributions.gaussian_mixture import gaussian
        >>> good, bad = gaussian(torch.zeros(1), torch.eye(1)), gaussian(torch.zeros(1), 3 * torch.eye(1))
        >>> x, sigma = torch.tensor([[4.0]]), torch.tensor(1.0)
        >>> good(x, sigma).item(), bad(x, sigma).item(), Guided([bad], [3.0], positive=good)(x, sigma).item()
        (2.0, 3.0, 0.0)
    """

    def __init__(
        self,
        negatives: Sequence[Denoiser],
        weights: Sequence[float | WeightSchedule],
        *,
        positive: Denoiser | None = None,
        combination: Combination | None = None,
    ) -> None:
        """`positive` (default: the model under evaluation) is pushed away from each negative with its weight.

        `combination` is the rule by which the difference is applied; default: `Plain`.

        Raises:
            ValueError: if there is not one weight for each negative, or a weight is not finite.
        """
        super().__init__()
        if len(negatives) != len(weights) or not negatives:
            raise ValueError(f"guidance needs one weight for each negative, got {len(negatives)} and {len(weights)}")
        if not all(math.isfinite(weight) for weight in weights if not isinstance(weight, WeightSchedule)):
            raise ValueError(f"{type(self).__name__} needs finite weights, got {list(weights)}")
        self.positive = positive if positive is not None else Main()
        self.negatives = nn.ModuleList(negatives)
        self.weights = list(weights)
        self.combination = combination or Plain()

    def resolve(self, models: Models) -> Denoiser:
        """Return a copy on real models; a negative of another shape than the positive is refused.

        Negatives made of the same positive as this guidance share its one resolution, as `Branches` requires.

        Raises:
            ValueError: naming both shapes.
        """
        resolved = super().resolve(models)
        assert isinstance(resolved, Guided)
        for before, after in zip(self.negatives, resolved.negatives, strict=True):
            if isinstance(before, Guidance) and before.positive is self.positive:
                after.positive = resolved.positive
            _check_fits(resolved.positive, after)
        return resolved

    def without_effect(self, steps: Sequence[Trajectory]) -> Iterator[str]:
        """Yield sentences if no step is guided, or a negative is the positive itself."""
        who = type(self).__name__
        rule = copy.deepcopy(self.combination)
        if all(self._weights(rule, step) is None for step in steps):
            if all(weight == 1 for weight in self.weights):
                yield f"{who} has the weight 1, which is off"
            else:
                levels = f"{steps[0].sigma:.4g} to {steps[-1].sigma:.4g}"
                yield f"{who} is off in all {len(steps)} steps of its sampler: no noise level, {levels}, is guided"
        if any(_is_same(negative, self.positive) for negative in self.negatives):
            yield f"{who} pushes a model away from itself: a negative is the same model as the positive"

    def start(self, trajectory: Trajectory) -> Predict:
        """Return the guided denoiser of one trajectory."""
        combination = copy.deepcopy(self.combination)  # its attributes are the state of one trajectory
        branches = Branches(self.positive, list(self.negatives), trajectory)  # type: ignore[arg-type]

        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            weights = self._weights(combination, trajectory)
            if weights is None:
                return branches.at([False] * len(self.weights), x, sigma, condition)[0](x, sigma)
            called = combination.called(weights, trajectory)
            positive, negatives = branches.at(called, x, sigma, condition)
            return combination.combine(positive, list(zip(weights, negatives, strict=True)), x, sigma, trajectory)

        return predict

    def _weights(self, combination: Combination, trajectory: Trajectory) -> list[float] | None:
        """Return the weights in effect at this point of `trajectory`, None if the positive is alone there."""
        scheduled = [weight_at(weight, trajectory.sigma) for weight in self.weights]
        weights = combination.weights(scheduled, trajectory)
        guided = any(guides_at(weight, trajectory.sigma) for weight in self.weights)
        return None if not guided or combination.is_off(weights, trajectory) else weights


def _is_same(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two denoisers are one object, or plain models with equal weights that are stored twice."""
    if one is other:
        return True
    if type(one) is not type(other) or isinstance(one, Guidance):
        return False
    if _in_training(one) != _in_training(other):  # as long as they are equal at the start alone
        return False
    pairs = list(zip(one.state_dict().values(), other.state_dict().values(), strict=False))
    apart = any(a.data_ptr() != b.data_ptr() for a, b in pairs)  # before training a snapshot is the model itself
    # waits for each weight until one differs, when a guidance is resolved: without effect it is named
    return apart and all(a.shape == b.shape and a.device == b.device and bool((a == b).all()) for a, b in pairs)


def _in_training(denoiser: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in denoiser.parameters())


def _check_fits(positive: Denoiser, negative: nn.Module) -> None:
    """Refuse a guider of another data shape, class count or condition; the shape () fits any data."""
    assert isinstance(negative, Denoiser)
    if isinstance(positive, Reference) or isinstance(negative, Reference):
        return
    if negative.data_shape not in ((), positive.data_shape):
        raise ValueError(
            f"the guider works on x of shape {negative.data_shape}, the main model on {positive.data_shape}"
        )
    if negative.num_classes not in (0, positive.num_classes):
        raise ValueError(f"the guider has {negative.num_classes} classes, the main model {positive.num_classes}")
    if negative.token_channels not in (0, positive.token_channels):
        raise ValueError(
            f"the guider reads embeddings of {negative.token_channels} channels, the main model of "
            f"{positive.token_channels} (0: no embeddings)"
        )
