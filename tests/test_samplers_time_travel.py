"""Time travel: the repeated step, its marginals and its number of network calls."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers import DDIM, DPMSolver2M, Euler, Heun, Sampler, TimeTravel
from lightning_guide.seeds import SampleSeeds

MIXTURE = GaussianMixture([[1.0, 0.2], [-0.8, -0.6]], 0.2 * torch.eye(2).expand(2, 2, 2))
GRID = KarrasGrid(6, sigma_min=0.05, sigma_max=8.0)


def last(sampler: Sampler, x: torch.Tensor) -> torch.Tensor:
    *_, end = sampler.steps(MIXTURE, x, seeds=SampleSeeds(3, range(len(x))))
    return end.x


@pytest.mark.parametrize("sampler", [Euler(GRID), Heun(GRID), DPMSolver2M(GRID), DDIM(GRID), Heun(GRID, s_churn=4.0)])
def test_one_repeat_equals_the_sampler(sampler: Sampler) -> None:
    x = 8 * torch.randn(4, 2, dtype=torch.float64)
    assert torch.equal(last(TimeTravel(sampler, 1), x), last(sampler, x))
    assert torch.equal(last(TimeTravel(sampler, 3, low=100.0), x), last(sampler, x))


def test_equals_the_published_variance_preserving_form() -> None:
    """Each step in the window is taken 3 times, with x_t <- sqrt(alpha) x_{t-1} + sqrt(1 - alpha) n in between."""
    x, levels, seeds = 8 * torch.randn(4, 2, dtype=torch.float64), GRID.sigmas().tolist(), SampleSeeds(3, range(4))
    vp = x / math.sqrt(1 + levels[0] ** 2)
    for t, t_next in zip(levels, levels[1:], strict=False):
        abar, abar_next = 1 / (1 + t**2), 1 / (1 + t_next**2)
        times = 3 if 0.1 < t <= 5 else 1
        for time in range(times):
            D = MIXTURE(vp / math.sqrt(abar), torch.tensor(t, dtype=torch.float64))
            eps = (vp - math.sqrt(abar) * D) / math.sqrt(1 - abar)
            vp = math.sqrt(abar_next) * D + math.sqrt(1 - abar_next) * eps
            if time < times - 1:
                alpha = abar / abar_next
                vp = math.sqrt(alpha) * vp + math.sqrt(1 - alpha) * seeds.normal("time travel", (2,)).double()
    torch.testing.assert_close(last(TimeTravel(Euler(GRID), 3, low=0.1, high=5.0), x), vp, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("repeats", [2, 5])
def test_variance_equals_its_closed_form(repeats: int) -> None:
    """On N(0, v) an Euler step multiplies by (v + sigma sigma') / (v + sigma^2); then sigma^2 - sigma'^2 is added."""
    grid, v = KarrasGrid(12, sigma_max=10.0), 0.5
    V = grid.sigmas()[0].item() ** 2
    for t, t_next in zip(grid.sigmas().tolist(), grid.sigmas().tolist()[1:], strict=False):
        for time in range(repeats):
            V *= ((v + t * t_next) / (v + t**2)) ** 2
            V += t**2 - t_next**2 if time < repeats - 1 else 0
    denoiser = gaussian([0.0] * 40, v * torch.eye(40))
    x = TimeTravel(Euler(grid), repeats).sample(denoiser, seeds=SampleSeeds(0, range(400))).x
    assert float(x.var()) == pytest.approx(V, rel=0.03)  # 16,000 numbers: standard error 1.1 %


class ExactFlow(Euler):
    """Exact flow of N(0, 0.5): states scale with their standard deviation."""

    def step(self, trajectory, predict, sigma, sigma_next, memory):  # type: ignore[no-untyped-def]
        trajectory.x = trajectory.x * ((0.5 + sigma_next**2) / (0.5 + sigma**2)).sqrt()


@pytest.mark.parametrize("repeats", [1, 2, 4])
def test_marginals_are_kept(repeats: int) -> None:
    """After each step the variance is v + sigma'^2, also on a coarse grid, where most of the state is fresh noise."""
    grid, denoiser, seeds = KarrasGrid(5, sigma_max=10.0), gaussian([0.0] * 40, 0.5 * torch.eye(40)), range(400)
    x = (100.5**0.5) * SampleSeeds(9, seeds).normal("initial", (40,))
    for step in TimeTravel(ExactFlow(grid), repeats).steps(denoiser, x, seeds=SampleSeeds(0, seeds)):
        assert float(step.x.var()) == pytest.approx(0.5 + step.sigma_next**2, rel=0.04)  # standard error 1.1 %


@pytest.mark.parametrize(("sampler", "once"), [(Euler(GRID), 6), (Heun(GRID), 11), (DPMSolver2M(GRID), 6)])
def test_nfe_accounting(sampler: Sampler, once: int) -> None:
    calls: list[int] = []
    denoiser = gaussian([0.0], [[1.0]])
    denoiser.register_forward_hook(lambda *_: calls.append(1))
    end = TimeTravel(sampler, 3).sample(denoiser, seeds=SampleSeeds(0, range(2)))
    assert end.evaluations == len(calls) == 3 * once


def test_repeats_of_a_multistep_sampler_start_from_the_same_history() -> None:
    """Each repetition of a DPM-Solver++ step uses the same previous step."""

    class Silent(SampleSeeds):
        def normal(self, purpose, shape, device="cpu"):  # type: ignore[no-untyped-def]
            return torch.zeros(len(self), *shape)

    seen: list[tuple[float, float]] = []

    class Recording(DPMSolver2M):
        def step(self, trajectory, predict, sigma, sigma_next, memory):  # type: ignore[no-untyped-def]
            seen.append((trajectory.sigma, float(memory.get("h", 0.0))))
            super().step(trajectory, predict, sigma, sigma_next, memory)

    x = 8 * torch.randn(2, 2, dtype=torch.float64)
    list(TimeTravel(Recording(GRID), 2).steps(MIXTURE, x, seeds=Silent(0, range(2))))
    assert len(seen) == 12
    assert all(first == second for first, second in zip(seen[::2], seen[1::2], strict=True))
    assert seen[2][1] == pytest.approx(math.log(seen[0][0] / seen[2][0]))


def test_samples_do_not_depend_on_the_batch() -> None:
    sampler = TimeTravel(Euler(GRID), 3)
    whole = sampler.sample(MIXTURE, seeds=SampleSeeds(7, range(6))).x
    part = sampler.sample(MIXTURE, seeds=SampleSeeds(7, [4])).x
    torch.testing.assert_close(whole[4:5], part, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("repeats", "low", "high"), [(0, 0.0, 1.0), (2, 1.0, 1.0), (2, -1.0, 1.0)])
def test_invalid_arguments_are_refused(repeats: int, low: float, high: float) -> None:
    with pytest.raises(ValueError, match="TimeTravel needs repeats >= 1 and 0 <= low < high"):
        TimeTravel(Euler(), repeats, low=low, high=high)
