r"""The one formula of negative guidance: D = D_neg + w (D_pos - D_neg), for any number of negatives.

With several, D = D_pos + sum_i (w_i - 1) (D_pos - D_i) (Karras et al. 2024, https://arxiv.org/abs/2406.02507, appendix
B.2). w = 1 is off: that negative is not called. Papers that write s, gamma or omega mean w - 1.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Models, Predict, Prediction, Trajectory
from lightning_guide.guidance.combination import Branch, Combination, Plain
from lightning_guide.guidance.references import Main, Reference
from lightning_guide.guidance.weights import WeightSchedule, weight_at
from lightning_guide.seeds import SampleSeeds

__all__ = ["Guidance", "Guided"]


class Guidance(Denoiser):
    """Base of guidances: denoisers made of denoisers. Their shapes are those of `positive`."""

    positive: Denoiser

    @property
    def data_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of one x."""
        return self.positive.data_shape

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of labels."""
        return self.positive.num_classes

    @property
    def sigma_data(self) -> float:  # type: ignore[override]
        """Standard deviation of the data."""
        return self.positive.sigma_data

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """The guided D (B, *) at one common `sigma` (), as the first step of a fresh trajectory.

        Raises:
            ValueError: if `sigma` holds different levels, since an interval is decided for all samples at once.
        """
        if sigma.numel() > 1 and bool((sigma != sigma.reshape(-1)[0]).any()):
            raise ValueError(f"{type(self).__name__} guides at one noise level at a time, got {sigma.numel()} of them")
        level = sigma.reshape(-1)[0]
        trajectory = Trajectory(x=x, seeds=SampleSeeds(0, range(len(x))), sigma=float(level))
        return self.start(trajectory)(x, level, condition).clean

    def resolve(self, models: Models) -> Denoiser:
        """A copy with every reference replaced by its model, all the way down."""
        resolved = copy.copy(self)
        _resolve_children(resolved, models)
        return resolved


def _resolve_children(module: nn.Module, models: Models) -> None:
    """Replaces what holds denoisers among the children: a denoiser by its resolution, anything else by a copy."""
    module._modules = dict(module._modules)
    for name, child in module.named_children():
        if isinstance(child, Denoiser):
            module._modules[name] = child.resolve(models)
        elif any(isinstance(part, Denoiser) for part in child.modules()):
            module._modules[name] = shell = copy.copy(child)
            _resolve_children(shell, models)


class Guided(Guidance):
    """D = D_pos + sum_i (w_i - 1) (D_pos - D_i), or another `combination` of the same branches."""

    def __init__(
        self,
        negatives: Sequence[Denoiser],
        weights: Sequence[float | WeightSchedule],
        *,
        positive: Denoiser | None = None,
        combination: Combination | None = None,
    ) -> None:
        """`positive` (default: the model under evaluation) is pushed away from each negative with its weight.

        `combination` says how the difference is applied; default: `Plain`.

        Raises:
            ValueError: if there is not one weight for each negative, or a weight is not finite.
        """
        super().__init__()
        if len(negatives) != len(weights) or not negatives:
            raise ValueError(f"guidance needs one weight for each negative, got {len(negatives)} and {len(weights)}")
        if not all(math.isfinite(weight) for weight in weights if isinstance(weight, int | float)):
            raise ValueError(f"{type(self).__name__} needs finite weights, got {list(weights)}")
        self.positive = positive if positive is not None else Main()
        self.negatives = nn.ModuleList(negatives)
        self.weights = list(weights)
        self.combination = combination or Plain()

    def resolve(self, models: Models) -> Denoiser:
        """As `Guidance.resolve`; a negative of another shape than the positive is refused.

        Raises:
            ValueError: naming both shapes.
        """
        resolved = super().resolve(models)
        assert isinstance(resolved, Guided)
        for negative in resolved.negatives:
            _check_fits(resolved.positive, negative)
        return resolved

    def start(self, trajectory: Trajectory) -> Predict:
        """The guided denoiser of one trajectory."""
        combine = self.combination.start(trajectory)
        positive = self.positive.start(trajectory)
        negatives = [negative.start(trajectory) for negative in self.negatives]  # type: ignore[operator]

        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            def branch(model: Predict) -> Branch:
                return lambda x, sigma: model(x, sigma, condition)

            weights = [weight_at(weight, trajectory.sigma) for weight in self.weights]
            weighted = [(weight, branch(model)) for weight, model in zip(weights, negatives, strict=True)]
            return combine(branch(positive), weighted, x, sigma)

        return predict


def _check_fits(positive: Denoiser, negative: nn.Module) -> None:
    """Refuses a guider of another data shape or class count; the shape () fits any data."""
    assert isinstance(negative, Denoiser)
    if isinstance(positive, Reference) or isinstance(negative, Reference):
        return
    if negative.data_shape not in ((), positive.data_shape):
        raise ValueError(
            f"the guider works on x of shape {negative.data_shape}, the main model on {positive.data_shape}"
        )
    if negative.num_classes not in (0, positive.num_classes):
        raise ValueError(f"the guider knows {negative.num_classes} classes, the main model {positive.num_classes}")
