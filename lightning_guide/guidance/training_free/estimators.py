"""Estimators of the loss under p(x_0 | x), of which only the mean D is known.

The exact guidance is the gradient of log E[exp(-loss(x_0)) | x]. An estimator evaluates the loss at n points around D
and pools the n values; the base, and the plug-in with the single point D.

The expected likelihood under a Gaussian around the clean estimate: LGD-MC, and the smoothed f of TFG.

The mean loss over random augmentations of the clean estimate.

Shen et al. 2024, https://arxiv.org/abs/2403.12404, algorithm 1: a smoothing of low dimension, against gradients that
only fool the guide. All copies share one derivative of the denoiser.
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


"""clean (B, *) -> n points around it (n, B, *), differentiable; always the same draws."""


class Estimator(HasRecipe, ABC):
    """Base of the estimators."""

    @abstractmethod
    def draw(self, clean: Tensor, point: StepContext) -> Copies:
        """Fresh draws for this call, for estimates of the kind of `clean` (B, *)."""

    def pool(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """The pooled loss (B,) of `losses` (n, B), and its derivative by each of them (n, B): the mean, and 1 / n."""
        return losses.mean(0), torch.full_like(losses, 1 / len(losses))


class PlugIn(Estimator):
    """loss(D): what DPS, FreeDoM and MPGD do."""

    def draw(self, clean: Tensor, point: StepContext) -> Copies:
        """The estimate itself; nothing is drawn."""
        return lambda clean: clean[None]


class MonteCarlo(Estimator):
    """-log mean_i exp(-loss(D + r n_i)) with n_i standard normal and r = scale sigma s / sqrt(sigma^2 + s^2).

    Song et al. 2023 (LGD), https://proceedings.mlr.press/v202/song23k.html, with scale = s = 1, so that
    r = sqrt(1 - abar); TFG (https://arxiv.org/abs/2409.15761) with its gamma as the scale. s stands for the standard
    deviation of the data; r^2 is the variance of x_0 given x if the data are Gaussian with that one.
    """

    def __init__(self, draws: int = 10, *, scale: float = 1.0, data_std: float = 1.0) -> None:
        """`draws` n; `data_std` is s.

        Raises:
            ValueError: unless `draws` >= 1, `scale` >= 0 and `data_std` > 0.
        """
        if draws < 1 or scale < 0 or not data_std > 0:
            raise ValueError(
                f"MonteCarlo needs draws >= 1, scale >= 0 and data_std > 0, got {draws}, {scale} and {data_std}"
            )
        self.draws, self.scale, self.data_std = draws, scale, data_std

    def spread(self, sigma: float) -> float:
        """r at `sigma`."""
        return self.scale * sigma * self.data_std / math.hypot(sigma, self.data_std)

    def draw(self, clean: Tensor, point: StepContext) -> Copies:
        """n fresh normal draws for each sample."""
        seeds = point.trajectory.seeds
        drawn = seeds.normal("energy", (self.draws, *clean.shape[1:]), clean.device).to(clean)  # (B, n, *)
        offsets = self.spread(point.sigma) * drawn.transpose(0, 1)
        return lambda clean: clean + offsets

    def pool(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """-log mean exp(-loss), and softmax(-loss)."""
        return math.log(len(losses)) - (-losses).logsumexp(0), (-losses).softmax(0)


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

    def draw(self, clean: Tensor, point: StepContext) -> Copies:
        """n fresh draws of each augmentation for each sample."""
        seeds = point.trajectory.seeds
        transforms = [each.draw(seeds, self.copies, clean.device) for each in self.augmentations]

        def copies(clean: Tensor) -> Tensor:
            points = clean.expand(self.copies, *clean.shape)
            for transform in transforms:
                points = transform(points)
            return points

        return copies
