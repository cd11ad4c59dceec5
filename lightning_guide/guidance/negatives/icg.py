"""Independent condition guidance (ICG): the negative has an independent random label, or noise as its embedding.

Sadat et al. 2024, "No Training, No Problem: Rethinking Classifier-Free Guidance for Diffusion Models",
https://arxiv.org/abs/2407.02687, section 3. For models trained without label dropout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Models, Trajectory
from lightning_guide.guidance.branches import ConditionReplacement, Replace
from lightning_guide.guidance.combinations.base import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.perturbation import ChangedEmbedding, ConditionPerturbation
from lightning_guide.guidance.schedules import WeightSchedule

__all__ = ["GaussianCondition", "IndependentConditionGuidance", "RandomCondition"]


class GaussianCondition(ConditionPerturbation):
    """ICG noise std(y) n instead of the embedding y, n drawn at each call; std over the E numbers of a label or token.

    y is (B, E) of labels or (B, L, E) of tokens; the zeros of missing ones stay zeros. This is the paper's variant for
    conditions that cannot be drawn: a negative `Perturbed([GaussianCondition()])`.
    """

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Return noise with the standard deviation of the embedding."""

        def gaussian(y: Tensor) -> Tensor:
            n = trajectory.seeds.normal("gaussian condition", y.shape[1:], y.device).to(y.dtype)
            return y.std(dim=-1, keepdim=True, correction=0) * n

        return ChangedEmbedding(module, gaussian)


class RandomCondition(ConditionReplacement):
    """D(x, sigma, c'), each sample's class c' uniform over all classes and drawn at each call."""

    def resolve(self, models: Models) -> Denoiser:
        """Return a copy on real models.

        Raises:
            ValueError: if the model has no labels.
        """
        resolved = super().resolve(models)
        assert isinstance(resolved, RandomCondition)
        resolved._check_labels()
        return resolved

    def start_condition(self, trajectory: Trajectory) -> Replace:
        """Return the function that draws labels; a model without labels is refused."""
        self._check_labels()
        return lambda x, condition: trajectory.seeds.integers("random condition", self.num_classes, x.device)

    def without_effect(self, steps: Sequence[Trajectory]) -> Iterator[str]:
        """Yield a sentence if there is only one class to draw."""
        if self.num_classes == 1:
            yield "ICG draws its random class from 1 class, which is that of the samples"

    def _check_labels(self) -> None:
        if self.token_channels:
            raise ValueError(
                "ICG draws random labels; this model reads embeddings, which cannot be drawn: take GaussianCondition, "
                "as configs/guidance/icg_gaussian.yaml does"
            )
        if self.num_classes == 0:
            raise ValueError("ICG draws random labels; this model has none (num_classes=0)")


class IndependentConditionGuidance(Guided):
    """ICG, D(c') + w (D(c) - D(c')), c' a random class. Two evaluations; needs labels, but no training without them.

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
