"""Classifier-free guidance (CFG), Ho and Salimans 2022, https://arxiv.org/abs/2207.12598."""

from __future__ import annotations

from lightning_guide.conditioning import lowest_label
from lightning_guide.denoiser import Denoiser, Models, Trajectory
from lightning_guide.guidance.base import Main
from lightning_guide.guidance.branches import ConditionReplacement, Replace
from lightning_guide.guidance.combinations.base import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.schedules import WeightSchedule

__all__ = ["ClassifierFreeGuidance", "Unconditional"]


class Unconditional(ConditionReplacement):
    """D(x, sigma, no condition): the model with its condition dropped, which needs training with label dropout."""

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """0: labels are ignored."""
        return 0

    @property
    def token_channels(self) -> int:  # type: ignore[override]
        """0: embeddings are ignored."""
        return 0

    def resolve(self, models: Models) -> Denoiser:
        """Return a copy on real models.

        Raises:
            ValueError: if the model has no condition to drop.
        """
        resolved = super().resolve(models)
        assert isinstance(resolved, Unconditional)
        if not resolved.positive.conditional:
            raise ValueError(
                "classifier-free guidance needs a model with labels or embeddings (this one has num_classes=0), "
                "or an unconditional network of its own (unconditional: ...)"
            )
        if lowest_label(resolved.positive) == 0:
            raise ValueError(
                f"classifier-free guidance needs a network that was trained without labels, too; this one, "
                f"with {resolved.positive.num_classes} classes, has no class for no condition"
            )
        return resolved

    def start_condition(self, trajectory: Trajectory) -> Replace:
        """Return the function that drops conditions."""
        return lambda x, condition: None


class ClassifierFreeGuidance(Guided):
    """CFG, D_uncond + w (D_cond - D_uncond). Two evaluations where w is not 1.

    The unconditional model is the same network without its label (it must have been trained with label dropout), or
    a separate network. Two classes at -1 and 1, x halfway between them, and the first class:

    Examples:
        >>> import torch
        >>> from lightning_guide.distributions.gaussian_mixture import GaussianMixture
        >>> classes = GaussianMixture(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1, 1), labels=[0, 1])
        >>> x, sigma, label = torch.zeros(1, 1), torch.tensor(1.0), torch.tensor([0])
        >>> guided = ClassifierFreeGuidance(3.0, positive=classes)
        >>> classes(x, sigma, label).item(), classes(x, sigma).item(), guided(x, sigma, label).item()
        (-0.5, 0.0, -1.5)
    """

    def __init__(
        self,
        weight: float | WeightSchedule = 1.5,
        *,
        unconditional: Denoiser | None = None,
        positive: Denoiser | None = None,
        combination: Combination | None = None,
    ) -> None:
        """`unconditional` defaults to `positive` without its label; the paper's own weight is w - 1."""
        positive = positive if positive is not None else Main()
        negative = unconditional if unconditional is not None else Unconditional(positive)
        super().__init__([negative], [weight], positive=positive, combination=combination)
