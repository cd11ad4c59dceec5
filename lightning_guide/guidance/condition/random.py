"""Independent condition guidance: the negative is told a condition that has nothing to do with the sample.

Sadat et al. 2024, "No Training, No Problem: Rethinking Classifier-Free Guidance for Diffusion Models",
https://arxiv.org/abs/2407.02687, section 3. For models trained without label dropout.
"""

from __future__ import annotations

from lightning_guide.denoiser import Denoiser, Models, Trajectory
from lightning_guide.guidance.combination import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.other_condition import OtherCondition, Replace
from lightning_guide.guidance.weights import WeightSchedule

__all__ = ["IndependentConditionGuidance", "RandomCondition"]


class RandomCondition(OtherCondition):
    """D(x, sigma, c'), each sample's class c' uniform over all classes and drawn afresh at each call."""

    def resolve(self, models: Models) -> Denoiser:
        """As `Guidance.resolve`.

        Raises:
            ValueError: if the model has no labels.
        """
        resolved = super().resolve(models)
        assert isinstance(resolved, RandomCondition)
        resolved._check_labels()
        return resolved

    def begin(self, trajectory: Trajectory) -> Replace:
        """Random labels.

        Raises:
            ValueError: if the model has no labels.
        """
        self._check_labels()
        return lambda x, condition: trajectory.seeds.integers("random condition", self.num_classes, x.device)

    def _check_labels(self) -> None:
        if self.token_channels:
            raise ValueError(
                "ICG draws random labels; this model reads embeddings, which cannot be drawn: take GaussianCondition, "
                "as configs/guidance/icg_gaussian.yaml does"
            )
        if self.num_classes == 0:
            raise ValueError("ICG draws random labels; this model has none (num_classes=0)")


class IndependentConditionGuidance(Guided):
    """D(c') + w (D(c) - D(c')), c' a random class. Two evaluations; needs labels, but no training without them.

    Published: w = 1.4 for DiT-XL/2, 1.25 for EDM2, where classifier-free guidance has 1.5 and 1.25.
    """

    def __init__(
        self,
        weight: float | WeightSchedule = 1.25,
        *,
        positive: Denoiser | None = None,
        combination: Combination | None = None,
    ) -> None:
        """`positive` is the model with labels; default: the one under evaluation."""
        super().__init__([RandomCondition(positive)], [weight], positive=positive, combination=combination)
