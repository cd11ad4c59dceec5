"""SDE-DPM-Solver++(2M) and its Brownian paths."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.noise import KarrasGrid, LogUniformGrid
from lightning_guide.samplers import Restart, Sampler, SDEDPMSolver2M, TimeTravel
from lightning_guide.samplers.brownian import BrownianPath
from lightning_guide.seeds import SampleSeeds

LEVELS = [80.0, 31.0, 4.0, 3.9, 1.0, 0.3, 0.11, 0.002]


def increments(path: BrownianPath, levels: list[float]) -> list[torch.Tensor]:
    return [
        path.inside(low) - path.inside(high) + path.octaves(high, low)
        for high, low in zip(levels, levels[1:], strict=False)
    ]


def test_increments_are_independent_normals_with_the_right_variances() -> None:
    path = BrownianPath(SampleSeeds(3, range(400)), (50,))
    drawn = torch.stack([each.flatten().double() for each in increments(path, LEVELS)])
    times = torch.tensor(LEVELS, dtype=torch.float64) ** -2
    z = drawn / (times[1:] - times[:-1]).sqrt()[:, None]
    assert float((z.mean(1)).abs().max()) < 4 / math.sqrt(20_000)
    # 20,000 numbers: standard error 1 % of the variance; 1 % less between 4.0 and 3.9, a 27th of an octave
    assert float((z.var(1) - 1).abs().max()) < 0.05
    correlation = torch.corrcoef(z) - torch.eye(len(z))
    assert float(correlation.abs().max()) < 4.5 / math.sqrt(20_000)


def test_a_path_is_the_same_at_any_levels_in_any_batch() -> None:
    path = BrownianPath(SampleSeeds(3, range(6)), (2,))
    whole = increments(path, [LEVELS[0], LEVELS[-1]])[0]
    torch.testing.assert_close(sum(increments(path, LEVELS)), whole, rtol=1e-4, atol=1e-4)
    part = increments(BrownianPath(SampleSeeds(3, [4]), (2,)), [LEVELS[0], LEVELS[-1]])[0]
    torch.testing.assert_close(part, whole[4:5])
    other = increments(BrownianPath(SampleSeeds(4, range(6)), (2,)), [LEVELS[0], LEVELS[-1]])[0]
    assert float((other - whole).abs().min()) > 0


def test_a_level_off_by_rounding_has_the_same_path() -> None:
    path = BrownianPath(SampleSeeds(3, range(6)), (2,))
    for sigma in (0.5, 0.3, 2.0**0.25, 7.3):
        here, there = (path.inside(s) + path.octaves(80.0, s) for s in (sigma, sigma * (1 + 1e-13)))
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-5 / sigma)


def test_samples_of_gaussian_data_have_its_mean_and_variance() -> None:
    x = SDEDPMSolver2M(48).sample(gaussian([1.0] * 200, 0.25), seeds=SampleSeeds(0, range(50))).x
    assert float(x.mean()) == pytest.approx(1.0, abs=0.02)  # 10,000 numbers: standard error 0.005
    assert float(x.var()) == pytest.approx(0.25, rel=0.06)


WAY = SDEDPMSolver2M(LogUniformGrid(5, sigma_min=0.05, sigma_max=5.0))


@pytest.mark.parametrize(
    "sampler",
    [
        TimeTravel(WAY, 3),
        Restart(WAY, low=0.1, high=1.0, repeats=3),
        Restart(TimeTravel(WAY, 2), low=0.1, high=1.0, repeats=2),
    ],
    ids=["time travel", "restart", "both"],
)
def test_repeated_steps_have_fresh_noise(sampler: Sampler) -> None:
    """The state holds the increments of the first walk already."""
    walks: list[set[str]] = [set()]

    class Recording(SampleSeeds):
        def normal(self, purpose: str, shape: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
            if purpose in ("time travel", "restart"):
                walks.append(set())
            walks[-1].add(purpose)
            return super().normal(purpose, shape, device)

    sampler.sample(gaussian([0.0], 0.25), seeds=Recording(0, [0]))
    drawn = [purpose for walk in walks for purpose in walk if purpose.startswith("brownian")]
    assert len(walks) > 3 and len(drawn) == len(set(drawn))


def test_more_steps_converge_to_one_sample() -> None:
    """Against the same path with 256 steps; fresh noise in each step would differ by the data's spread."""
    mixture = GaussianMixture([[-1.0, 0.2], [1.0, 0.5]], 0.2 * torch.eye(2).expand(2, 2, 2))

    def sample(steps: int) -> torch.Tensor:
        grid = LogUniformGrid(steps, sigma_min=0.05, sigma_max=10.0)
        return SDEDPMSolver2M(grid).sample(mixture, seeds=SampleSeeds(1, range(12))).x

    finest = sample(256)
    errors = [float((sample(steps) - finest).norm(dim=1).median()) for steps in (16, 32, 64)]
    assert errors[1] < 0.7 * errors[0] and errors[2] < 0.7 * errors[1]
    assert errors[2] < 0.06 * float(finest.std())


def test_one_network_call_a_step() -> None:
    end = SDEDPMSolver2M(KarrasGrid(9)).sample(gaussian([0.0], [[1.0]]), seeds=SampleSeeds(0, range(3)))
    assert end.evaluations == 9
