"""Synthetic walking paths of a root joint on the ground (`Trajectories`), drawn from a known distribution.

A walker starts at the origin in a random direction theta_0, uniform on the circle. Speed and turning rate are
stationary Ornstein-Uhlenbeck processes, and the body sways sideways once every two steps:

    position(t) = integral of v(s) (cos theta(s), sin theta(s)) ds + sway sin(pi f t + phase) (-sin theta, cos theta)

with v(t) = speed (1 + 0.15 sin(2 pi f t + 2 phase)) (1 + spread u(t)), theta' = turning w(t), u and w of unit variance,
and f steps a second. The gaits correspond to the four prompts of the motion experiments of Shen et al. 2024,
https://arxiv.org/abs/2403.12404, as far as the path of one joint distinguishes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from datamodules.base import DiffusionData
from datamodules.examples import TensorExamples
from lightning_guide.seeds import mix

__all__ = ["GAITS", "Gait", "Trajectories", "generate_walks"]


SPREAD, MEMORY = 0.1, 1.5  # relative spread of the speed; correlation time of speed and turning rate, in seconds


@dataclass(frozen=True)
class Gait:
    """Parameters of a gait: `speed` in m/s, `turning` in rad/s, `sway` in m, `steps` a second."""

    name: str
    speed: float
    turning: float
    sway: float
    steps: float


GAITS = (
    Gait("walking", speed=1.3, turning=0.25, sway=0.04, steps=1.8),
    Gait("backwards", speed=0.7, turning=0.15, sway=0.05, steps=1.4),
    Gait("balance beam", speed=0.5, turning=0.03, sway=0.06, steps=1.0),
    Gait("jogging", speed=2.2, turning=0.3, sway=0.03, steps=2.7),
)


def generate_walks(labels: Tensor, generator: torch.Generator, *, frames: int = 64, seconds: float = 0.1) -> Tensor:
    """Draw paths (n, 2, frames) in meters of the gaits `labels` (n,); frame i is (i + 1) `seconds` after the start."""
    speed, turning, sway, steps = (
        torch.tensor([getattr(gait, key) for gait in GAITS], dtype=torch.float64)[labels, None]
        for key in ("speed", "turning", "sway", "steps")
    )
    n, time = len(labels), seconds * torch.arange(1, frames + 1, dtype=torch.float64)
    start, phase = 2 * math.pi * torch.rand(2, n, 1, generator=generator, dtype=torch.float64)
    u, w = (_wandering(n, frames, seconds, generator) for _ in range(2))
    v = speed * (1 + 0.15 * (2 * math.pi * steps * time + 2 * phase).sin()) * (1 + SPREAD * u)
    theta = start + (turning * w * seconds).cumsum(1)
    along = torch.stack([theta.cos(), theta.sin()], 1)  # (n, 2, frames)
    across = torch.stack([-theta.sin(), theta.cos()], 1)
    swaying = sway * (math.pi * steps * time + phase).sin()
    return ((v[:, None] * along * seconds).cumsum(2) + swaying[:, None] * across).to(torch.float32)


def _wandering(n: int, frames: int, seconds: float, generator: torch.Generator) -> Tensor:
    """Draw stationary Ornstein-Uhlenbeck processes (n, frames) of unit variance."""
    kept = math.exp(-seconds / MEMORY)
    noise = torch.randn(n, frames, generator=generator, dtype=torch.float64)
    values = [noise[:, 0]]
    for i in range(1, frames):
        values.append(kept * values[-1] + math.sqrt(1 - kept**2) * noise[:, i])
    return torch.stack(values, 1)


class Trajectories(DiffusionData):
    """Paths (2, frames) of four `GAITS`, which are the labels; stored in meters, encoded as steps.

    A step is the displacement from one frame to the next, the first one from the origin, in units of `meters`.
    Similar neighboring steps are easier to recognize for a network than similar positions far from the origin. With the
    default `meters` the standard deviation of encoded data is 1. Path objectives act on encoded data through
    `lightning_guide.objectives.Integrated`, with the same `meters`. Paths are the same for every seed, which only
    affects their order in training.
    """

    num_classes = len(GAITS)

    def __init__(
        self,
        *,
        frames: int = 64,
        seconds: float = 0.1,
        meters: float = 0.0955,
        training_size: int = 16384,
        heldout_size: int = 1024,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        """Set the number of `frames` of a path, `seconds` apart.

        Raises:
            ValueError: if a size or a unit is not positive.
        """
        super().__init__(batch_size=batch_size, seed=seed)
        if min(frames, training_size, heldout_size) < 1 or not (seconds > 0 and meters > 0):
            raise ValueError(
                "Trajectories needs positive frames, seconds, meters and sizes, got "
                f"{frames}, {seconds}, {meters}, {training_size} and {heldout_size}"
            )
        self.data_shape = (2, frames)
        self.seconds, self.meters = seconds, meters
        self.sizes = {"training": training_size, "heldout": heldout_size}

    def encode(self, raw: Tensor) -> Tensor:
        """Return the steps of paths in units of `meters`, float32."""
        path = raw.to(torch.float32)
        return torch.cat([path[..., :1], path.diff(dim=-1)], -1) / self.meters

    def decode(self, x: Tensor) -> Tensor:
        """Return paths in meters, float32."""
        return (x.to(torch.float32) * self.meters).cumsum(-1)

    def training(self) -> TensorExamples:
        """Return the training paths, equally many of each gait."""
        return self._finite["training"]

    def heldout(self) -> TensorExamples:
        """Return the held-out paths, drawn independently of the training paths."""
        return self._finite["heldout"]

    @cached_property
    def _finite(self) -> dict[str, TensorExamples]:
        found = {}
        for name, size in self.sizes.items():
            labels = torch.arange(size) % self.num_classes
            generator = torch.Generator().manual_seed(mix("trajectories", name))
            paths = generate_walks(labels, generator, frames=self.data_shape[1], seconds=self.seconds)
            found[name] = TensorExamples(paths, labels)
        return found
