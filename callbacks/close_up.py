"""The close-up of the 2D study: where trajectories start in a small window, and the ways they take."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from callbacks.density_map import Window
from callbacks.truth import Truth
from lightning_guide.denoiser import Denoiser
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers import Sampler
from lightning_guide.seeds import SampleSeeds

__all__ = ["CloseUp", "starts", "trajectories"]


@dataclass(frozen=True)
class CloseUp:
    """What the close-up shows (window, level and spacing are those of the paper).

    Attributes:
        unguided: evaluation of the first trajectories.
        guided: evaluation of the second; its main model and its first guider are those whose densities are drawn.
        centre: of the window.
        half_width: half of the window's side.
        sigma: noise level at which trajectories start and densities are drawn.
        spacing: smallest distance between two starting points.
        candidates: points drawn from the distribution, of which those in the window are thinned out.
        steps: of the sampler from `sigma` down.
    """

    unguided: str = "unguided"
    guided: str = "autoguidance"
    centre: tuple[float, float] = (0.45, 1.22)
    half_width: float = 0.3
    sigma: float = 0.03
    spacing: float = 0.045
    candidates: int = 32768
    steps: int = 32

    @property
    def window(self) -> Window:
        """The part of the plane that is shown."""
        return Window((self.centre[0], self.centre[1]), self.half_width)


def starts(truth: Truth, close_up: CloseUp) -> Tensor:
    """Points (n, 2) drawn from p(x; sigma) inside the window, no two closer than the spacing.

    Raises:
        ValueError: if none of the candidates lies inside.
    """
    x = truth.sample(close_up.candidates, sigma=close_up.sigma)
    inside = x[close_up.window.contains(x)]
    if not len(inside):
        raise ValueError(
            f"none of {close_up.candidates} true points lies in the close-up around {tuple(close_up.centre)} with the "
            f"half-width {close_up.half_width:g}; expected a window where the distribution is"
        )
    taken = inside[:1]
    for point in inside[1:]:
        if (taken - point).square().sum(dim=1).min() >= close_up.spacing**2:
            taken = torch.cat([taken, point[None]])
    return taken


def trajectories(denoiser: Denoiser, sampler: Sampler, x: Tensor, *, sigma: float, steps: int) -> Tensor:
    """States (steps + 1, n, 2), on the CPU, of `sampler` on its way from `x` (n, 2) at `sigma` to its lowest level."""
    short = copy.copy(sampler)
    lowest = float(sampler.grid.sigmas()[-2])
    short.grid = KarrasGrid(steps, sigma_min=min(lowest, sigma / 2), sigma_max=sigma)
    walk = short.steps(denoiser, x, seeds=SampleSeeds(0, range(len(x))))
    return torch.stack([x.cpu(), *[trajectory.x.cpu() for trajectory in walk]])
