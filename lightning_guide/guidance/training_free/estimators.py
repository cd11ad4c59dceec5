"""Estimators of the loss under p(x_0 | x), whose mean D is all that is known.

The exact guidance is the gradient of log E[exp(-loss(x_0)) | x]. An estimator evaluates the loss at n points around D
and pools the n values. All points share one derivative of the denoiser.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_guide.guidance.training_free.augmentations import Augmentation
from lightning_guide.guidance.training_free.schedules import StepContext
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Augmented", "Copies", "Estimator", "MonteCarlo", "PlugIn"]


Copies = Callable[[Tensor], Tensor]
"""clean (B, *) -> n points around it (n, B, *), differentiable; the same draws in every call."""


class Estimator(HasRecipe, ABC):
    """Base of the estimators."""

    @abstractmethod
    def draw(self, clean: Tensor, context: StepContext) -> Copies:
        """Draw the points of this step, around estimates of the shape of `clean` (B, *)."""

    def pool(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled loss (B,) of `losses` (n, B) and its derivative by each (n, B): the mean, and 1 / n."""
        return losses.mean(0), torch.full_like(losses, 1 / len(losses))


class PlugIn(Estimator):
    """The plug-in estimate loss(D) of DPS, FreeDoM and MPGD."""

    def draw(self, clean: Tensor, context: StepContext) -> Copies:
        """Return the estimate itself, without a draw."""
        return lambda clean: clean[None]


class MonteCarlo(Estimator):
    """Monte Carlo estimate of the likelihood exp(-loss) under a Gaussian around D.

    -log mean_i exp(-loss(D + r n_i)) with n_i standard normal and r = scale sigma s / sqrt(sigma^2 + s^2). s is the
    standard deviation of the data; r^2 is the variance of x_0 given x if the data are Gaussian with this deviation.
    Song et al. 2023 (LGD-MC), https://proceedings.mlr.press/v202/song23k.html, has scale = s = 1, so that
    r = sqrt(1 - abar); TFG (https://arxiv.org/abs/2409.15761) has its gamma as the scale.
    """

    def __init__(self, draws: int = 10, *, scale: float = 1.0, data_std: float = 1.0) -> None:
        """Average over `draws` n.

        Args:
            draws: n.
            scale: factor of r.
            data_std: s.

        Raises:
            ValueError: unless `draws` >= 1, `scale` >= 0 and `data_std` > 0.
        """
        if draws < 1 or scale < 0 or not data_std > 0:
            raise ValueError(
                f"MonteCarlo needs draws >= 1, scale >= 0 and data_std > 0, got {draws}, {scale} and {data_std}"
            )
        self.draws, self.scale, self.data_std = draws, scale, data_std

    def spread(self, sigma: float) -> float:
        """Return r at `sigma`."""
        return self.scale * sigma * self.data_std / math.hypot(sigma, self.data_std)

    def draw(self, clean: Tensor, context: StepContext) -> Copies:
        """Draw n normal offsets for each sample."""
        seeds = context.trajectory.seeds
        drawn = seeds.normal("energy", (self.draws, *clean.shape[1:]), clean.device).to(clean)  # (B, n, *)
        offsets = self.spread(context.sigma) * drawn.transpose(0, 1)
        return lambda clean: clean + offsets

    def pool(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Return -log mean exp(-loss) and softmax(-loss)."""
        return math.log(len(losses)) - (-losses).logsumexp(0), (-losses).softmax(0)


class Augmented(Estimator):
    """Mean loss over random augmentations, (1 / n) sum_i loss(T_i(D)), each T_i a draw of all `augmentations` in turn.

    Shen et al. 2024, https://arxiv.org/abs/2403.12404, algorithm 1: a smoothing of low dimension, which suppresses
    adversarial gradients.
    """

    def __init__(self, augmentations: Sequence[Augmentation], copies: int = 10) -> None:
        """Average over `copies` n: 10 in the paper, 20 in its published ImageNet settings.

        Without augmentations: the plug-in.

        Raises:
            ValueError: if `copies` is less than 1.
        """
        if copies < 1:
            raise ValueError(f"Augmented needs copies >= 1, got {copies}")
        self.augmentations, self.copies = list(augmentations), copies

    def draw(self, clean: Tensor, context: StepContext) -> Copies:
        """Draw each augmentation n times for each sample."""
        seeds = context.trajectory.seeds
        transforms = [each.draw(seeds, self.copies, clean.device) for each in self.augmentations]

        def copies(clean: Tensor) -> Tensor:
            points = clean.expand(self.copies, *clean.shape)
            for transform in transforms:
                points = transform(points)
            return points

        return copies
