"""The mean loss over random augmentations of the clean estimate.

Shen et al. 2024, https://arxiv.org/abs/2403.12404, algorithm 1: a smoothing of low dimension, against gradients that
only fool the guide. All copies share one derivative of the denoiser.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_guide.guidance.energy.augmentations import Augmentation
from lightning_guide.guidance.energy.estimator import Copies, Estimator
from lightning_guide.guidance.energy.point import Point

__all__ = ["Augmented"]


class Augmented(Estimator):
    """(1 / n) sum_i loss(T_i(D)), each T_i a fresh draw of all `augmentations`, one after the other."""

    def __init__(self, augmentations: Sequence[Augmentation], copies: int = 10) -> None:
        """`copies` n: 10 in the paper, 20 in its published ImageNet settings. Without augmentations: the plug-in.

        Raises:
            ValueError: if `copies` is less than 1.
        """
        if copies < 1:
            raise ValueError(f"Augmented needs copies >= 1, got {copies}")
        self.augmentations, self.copies = list(augmentations), copies

    def draw(self, clean: Tensor, point: Point) -> Copies:
        """n fresh draws of each augmentation for each sample."""
        seeds = point.trajectory.seeds
        transforms = [each.draw(seeds, self.copies, clean.device) for each in self.augmentations]

        def copies(clean: Tensor) -> Tensor:
            points = clean.expand(self.copies, *clean.shape)
            for transform in transforms:
                points = transform(points)
            return points

        return copies
