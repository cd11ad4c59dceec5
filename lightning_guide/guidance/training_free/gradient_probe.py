"""Gradient ascent on a guide without a diffusion model.

After figure 2 of Shen et al. 2024, https://arxiv.org/abs/2403.12404: a thousand steps along the gradients of an
ordinary classifier give noise, those of a robust or noise-conditional classifier give an image; augmentation is in
between.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.training_free.estimators import Estimator, PlugIn
from lightning_guide.guidance.training_free.local_loss import LocalLoss
from lightning_guide.guidance.training_free.schedules import StepContext
from lightning_guide.guidance.training_free.step_rules import NormalizedStep, StepRule
from lightning_guide.objectives.energy import Energy
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Probe", "gradient_ascent", "smoothness"]


class Probe(HasRecipe):
    """A guide to be visualized: energies, used in turn for equal shares of the steps, and an estimator."""

    def __init__(self, energies: Sequence[Energy], estimator: Estimator | None = None) -> None:
        """Usually one energy; a classifier of noisy images has one for each level, `AtLevel`, in descending order.

        Raises:
            ValueError: if there is no energy.
        """
        if not energies:
            raise ValueError("a Probe needs at least one energy")
        self.energies, self.estimator = list(energies), estimator or PlugIn()


def gradient_ascent(
    probe: Probe,
    x: Tensor,
    *,
    seeds: SampleSeeds,
    condition: Tensor | None = None,
    steps: int = 1000,
    rule: StepRule | None = None,
) -> tuple[Tensor, Tensor]:
    """Return x after `steps` of `rule` along the gradients of `probe`, and the loss (steps, B) before each.

    Args:
        probe: the guide.
        x: backgrounds (B, *).
        seeds: of the samples; every step draws anew.
        condition: labels (B,).
        steps: number of steps.
        rule: default: steps of length 0.01 sqrt(d), `NormalizedStep`, at sigma = sigma' = 0.

    Raises:
        ValueError: if there are fewer steps than energies.
    """
    if steps < len(probe.energies):
        raise ValueError(f"{len(probe.energies)} energies share {steps} steps; expected one step for each at least")
    descend = (rule or NormalizedStep(0.01 * x[0].numel() ** 0.5)).start()
    trajectory = Trajectory(x=x, seeds=seeds, sigma=0.0, steps=steps)
    started = [energy.to(x.device).start(trajectory) for energy in probe.energies]
    losses = []
    for step in range(steps):
        trajectory.step = step
        local_loss = LocalLoss(
            x,
            StepContext(torch.zeros_like(x), 0.0, 0.0, trajectory),
            lambda gradient: gradient,
            loss=started[step * len(started) // steps],
            condition=condition,
            estimator=probe.estimator,
            guide_batch=None,
        )
        loss, gradient = local_loss.at_clean
        losses.append(loss)
        x = x + local_loss.step(descend, loss, gradient)
    return x, torch.stack(losses)


def smoothness(x: Tensor) -> Tensor:
    """Return the share (B,) of the spectral energy of images `x` (B, C, H, W) at frequencies up to half the highest.

    The mean of each channel is removed. White noise has a share of about a quarter, and 0.38 on 8 x 8 pixels.
    """
    spectrum = torch.fft.fft2(x - x.mean((2, 3), keepdim=True)).abs().square()
    rows, columns = (torch.fft.fftfreq(side, device=x.device).abs() <= 0.25 for side in x.shape[2:])
    low = rows[:, None] & columns
    return (spectrum * low).sum((1, 2, 3)) / spectrum.sum((1, 2, 3))
