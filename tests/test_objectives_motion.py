"""Goal and obstacle: explicit formulas of the paper, and guided paths."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance.training_free import FreeDoM
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import Goal, Integrated, Obstacle, WeightedSum
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds

double = torch.float64


def motions(joints: int = 1, frames: int = 5) -> Tensor:
    """Return two motions (2, 2 joints, frames)."""
    return torch.randn(2, 2 * joints, frames, generator=torch.Generator().manual_seed(0), dtype=double)


@pytest.mark.parametrize("joints", [1, 3])
def test_losses_equal_the_formulas_of_the_paper(joints: int) -> None:
    x, goal, center = motions(joints), [1.0, -0.5], [0.2, 0.1]
    target = Integrated(Goal(goal), 2.0)(x)
    loss = Integrated(Obstacle(center, 0.7, margin=0.2), 2.0)(x)
    for row, motion in enumerate(x.tolist()):
        total = 0.0
        for frame in range(5):
            px = 2 * sum(sum(motion[2 * j][: frame + 1]) for j in range(joints)) / joints
            pz = 2 * sum(sum(motion[2 * j + 1][: frame + 1]) for j in range(joints)) / joints
            away = math.hypot(px - center[0], pz - center[1])
            total += 100 / (1 + math.exp(50 * (away - 0.9)))
        assert float(loss[row]) == pytest.approx(total / 5, rel=1e-9)
        assert float(target[row]) == pytest.approx((px - goal[0]) ** 2 + (pz - goal[1]) ** 2, rel=1e-9)


def test_hits_ignore_the_margin() -> None:
    line = torch.linspace(-2, 2, 9, dtype=double)
    paths = torch.stack([torch.stack([line, 0.4 + 0 * line]), torch.stack([line, 0.6 + 0 * line])])
    assert Obstacle([0.0, 0.0], 0.5, margin=0.3).hit(paths).tolist() == [True, False]


class Lines(Denoiser):
    """Exact denoiser of straight paths from the origin to end points of a Gaussian mixture."""

    data_shape, num_classes, sigma_data = (2, 8), 0, 1.0

    def __init__(self) -> None:
        super().__init__()
        share = torch.linspace(0.25, 1, 8, dtype=double)
        self.along = share / share.norm()  # a path is e (*) share; its coordinate along `along` is e |share|
        means = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], dtype=double) * share.norm()
        self.ends = GaussianMixture(means, 0.3 * torch.eye(2, dtype=double).expand(3, 2, 2))

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.ends(x @ self.along, sigma)[..., None] * self.along


def test_guidance_reaches_the_goal_and_keeps_paths_straight() -> None:
    lines, seeds = Lines(), SampleSeeds(0, range(40))
    sampler = Euler(KarrasGrid(20, sigma_min=0.02, sigma_max=20.0))
    goal = Goal([-1.0, 1.7])
    *_, plain = sampler.steps(lines, sampler.initial(lines, seeds).double(), seeds=seeds)
    guide, seeds = FreeDoM(goal, 0.4, positive=lines), SampleSeeds(0, range(40))
    *_, guided = sampler.steps(guide, sampler.initial(lines, seeds).double(), seeds=seeds)
    assert goal(plain.x).mean() > 5 and goal(guided.x).mean() < 0.15
    # the derivative of the denoiser spreads the gradient at the last frame over the whole path
    off = guided.x - (guided.x @ lines.along)[..., None] * lines.along
    assert off.norm(dim=(1, 2)).max() < 0.1


def test_obstacle_guidance_reduces_hits() -> None:
    lines, sampler = Lines(), Euler(KarrasGrid(20, sigma_min=0.02, sigma_max=20.0))
    obstacle = Obstacle([2.0, 0.0], 0.4, margin=0.2, sharpness=5.0)
    hits = []
    for loss in (None, WeightedSum([obstacle])):
        seeds = SampleSeeds(1, range(60))
        denoiser = lines if loss is None else FreeDoM(loss, 0.02, positive=lines)
        *_, end = sampler.steps(denoiser, sampler.initial(lines, seeds).double(), seeds=seeds)
        hits.append(int(obstacle.hit(end.x).sum()))
    assert hits[0] >= 10 and hits[1] <= hits[0] // 3, hits


def test_errors() -> None:
    with pytest.raises(ValueError, match="two coordinates"):
        Goal([1.0])
    with pytest.raises(ValueError, match="positive radius and sharpness"):
        Obstacle([0.0, 0.0], 0.0)
    with pytest.raises(ValueError, match="meters > 0"):
        Integrated(Goal([1.0, 1.0]), 0.0)
    with pytest.raises(ValueError, match="2 joints, frames"):
        Goal([1.0, 1.0])(torch.zeros(2, 3, 4))
