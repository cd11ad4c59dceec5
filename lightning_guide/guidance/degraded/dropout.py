"""Dropout while sampling: a synthetic degradation of a finished model.

Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", https://arxiv.org/abs/2406.02507, section
on synthetic degradations: a model with 5 % dropout, guided by itself with 10 % at w = 2.25, was as good as without.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.perturbed import Replacement

__all__ = ["SamplingDropout"]


class SamplingDropout(Replacement):
    """x m / (1 - p), m = 0 with probability p, else 1, for each sample, number and call; p = 0 changes nothing.

    `Perturbed([SamplingDropout(0.1)])` is a denoiser, to be a positive or a negative. It drops whether the network is
    in training mode or not, and whatever rate it was trained with, since it takes the place of the dropout layers.
    """

    kind = "dropout"

    def __init__(self, probability: float = 0.1, *, layers: Sequence[str] | None = None) -> None:
        """`probability` p in [0, 1); `layers`: modules whose result is replaced, by default the dropout layers.

        Raises:
            ValueError: if `probability` is outside.
        """
        super().__init__(layers=layers)
        if not 0 <= probability < 1:
            raise ValueError(f"SamplingDropout needs a probability in [0, 1), got {probability}")
        self.probability = probability

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Dropout from the streams of the samples."""
        return _Dropout(self.probability, trajectory) if self.probability else module


class _Dropout(nn.Module):
    """Dropout of one trajectory."""

    def __init__(self, probability: float, trajectory: Trajectory) -> None:
        super().__init__()
        self.probability, self.trajectory = probability, trajectory
        self.purpose = f"dropout {probability}"  # two rates have streams that do not disturb each other

    def forward(self, x: Tensor) -> Tensor:
        kept = self.trajectory.seeds.uniform(self.purpose, x.shape[1:], x.device) >= self.probability
        return x * kept / (1 - self.probability)
