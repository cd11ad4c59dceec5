"""The expected likelihood under a Gaussian around the clean estimate: LGD-MC, and the smoothed f of TFG."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_guide.guidance.energy.estimator import Copies, Estimator
from lightning_guide.guidance.energy.point import Point

__all__ = ["MonteCarlo"]


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

    def draw(self, clean: Tensor, point: Point) -> Copies:
        """n fresh normal draws for each sample."""
        seeds = point.trajectory.seeds
        drawn = seeds.normal("energy", (self.draws, *clean.shape[1:]), clean.device).to(clean)  # (B, n, *)
        offsets = self.spread(point.sigma) * drawn.transpose(0, 1)
        return lambda clean: clean + offsets

    def pool(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """-log mean exp(-loss), and softmax(-loss)."""
        return math.log(len(losses)) - (-losses).logsumexp(0), (-losses).softmax(0)
