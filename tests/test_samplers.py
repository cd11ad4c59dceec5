"""Samplers against closed-form flows: order of accuracy, network calls, seeds, churn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import scipy.integrate
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory
from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.noise import Grid, KarrasGrid
from lightning_guide.samplers import DPMSolver2M, Euler, Heun, Sampler
from lightning_guide.seeds import SampleSeeds

SAMPLERS: list[type[Sampler]] = [Euler, Heun, DPMSolver2M]
MEAN, COVARIANCE = torch.tensor([0.3, -0.2]).double(), torch.tensor([[2.0, 1.0], [1.0, 1.5]]).double()


class Levels(Grid):
    """Grid of given levels, which need not end at 0 in tests of the order of accuracy."""

    def __init__(self, levels: Tensor) -> None:
        self.levels = levels.double()

    def sigmas(self) -> Tensor:
        return self.levels


def geometric(high: float, low: float, steps: int) -> Levels:
    """Return a grid of `steps` equal steps in ln sigma."""
    return Levels(torch.logspace(math.log10(high), math.log10(low), steps + 1, dtype=torch.float64))


def walk(sampler: Sampler, denoiser: Denoiser, x: Tensor, condition: Tensor | None = None) -> Trajectory:
    """Return the final state of the trajectory that starts at `x`."""
    *_, last = sampler.steps(denoiser, x, seeds=SampleSeeds(0, range(len(x))), condition=condition)
    return last


def flow(x: Tensor, start: float, end: float) -> Tensor:
    """Compute the closed-form flow of N(MEAN, COVARIANCE): each eigendirection scales with its standard deviation."""
    values, vectors = torch.linalg.eigh(COVARIANCE)
    scale = ((values + end**2) / (values + start**2)).sqrt()
    return MEAN + (x - MEAN) @ vectors @ torch.diag(scale) @ vectors.T


# Order of accuracy


@pytest.mark.parametrize(("kind", "order"), [(Euler, 1), (Heun, 2), (DPMSolver2M, 2)])
def test_order_of_accuracy_on_gaussian_data(kind: Callable[[Grid], Sampler], order: int) -> None:
    x = 8 * torch.randn(6, 2, dtype=torch.float64)
    exact = flow(x, 8.0, 0.1)
    errors = [
        float((walk(kind(geometric(8.0, 0.1, steps)), gaussian(MEAN, COVARIANCE), x).x - exact).abs().max())
        for steps in (64, 128, 256)
    ]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.12)


@pytest.mark.parametrize(("kind", "order"), [(Euler, 1), (Heun, 2), (DPMSolver2M, 2)])
def test_order_of_accuracy_on_a_mixture(kind: Callable[[Grid], Sampler], order: int) -> None:
    """Nonlinear flow, against an adaptive integrator of order 8."""
    mixture = GaussianMixture([[-1.0, 0.2], [1.0, 0.5], [0.1, -1.0]], 0.2 * torch.eye(2).expand(3, 2, 2), [1, 2, 1])
    x = 4 * torch.randn(4, 2, dtype=torch.float64)

    def slope(t: float, flat: Any) -> Any:
        state, sigma = torch.from_numpy(flat).reshape(4, 2), torch.tensor(math.exp(t), dtype=torch.float64)
        return (state - mixture(state, sigma)).flatten().numpy()  # dx / dln sigma

    span = (math.log(4.0), math.log(0.2))
    reference = scipy.integrate.solve_ivp(slope, span, x.flatten().numpy(), "DOP853", rtol=1e-10, atol=1e-11)
    exact = torch.from_numpy(reference.y[:, -1]).reshape(4, 2)
    errors = [float((walk(kind(geometric(4.0, 0.2, steps)), mixture, x).x - exact).norm()) for steps in (128, 256, 512)]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(("kind", "tolerance"), [(Euler, 0.05), (Heun, 0.004), (DPMSolver2M, 0.03)])
def test_sampling_to_zero_on_the_published_grid(kind: Callable[[Grid], Sampler], tolerance: float) -> None:
    x = 80 * torch.randn(6, 2, dtype=torch.float64)
    end = walk(kind(KarrasGrid(64)), gaussian(MEAN, COVARIANCE), x).x
    assert float((end - flow(x, 80.0, 0.0)).norm() / end.norm()) < tolerance


# Evaluations, trajectory, seeds


@pytest.mark.parametrize("steps", [1, 2, 18, 32])
@pytest.mark.parametrize(("kind", "factor", "less"), [(Euler, 1, 0), (Heun, 2, 1), (DPMSolver2M, 1, 0)])
def test_number_of_evaluations(kind: Callable[[Grid], Sampler], factor: int, less: int, steps: int) -> None:
    calls = []
    denoiser = gaussian([0.0], [[1.0]])
    denoiser.register_forward_hook(lambda *_: calls.append(1))
    end = kind(KarrasGrid(steps)).sample(denoiser, seeds=SampleSeeds(0, range(3)))
    assert end.evaluations == len(calls) == factor * steps - less
    assert end.x.shape == (3, 1) and end.x.dtype == torch.float32 and end.sigma_next == 0


class Watching(GaussianMixture):
    """Records the state of its trajectory and the condition at each call."""

    def start(self, trajectory: Trajectory) -> Predict:
        self.seen: list[tuple[str, float, float, float]] = []
        self.conditions: list[Tensor | None] = []

        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            assert x is trajectory.x and not torch.is_grad_enabled()
            self.seen.append((trajectory.stage, trajectory.sigma, trajectory.sigma_next, float(sigma)))
            self.conditions.append(condition)
            return Prediction(self(x, sigma, condition))

        return predict


@pytest.mark.parametrize("kind", SAMPLERS)
def test_trajectory_holds_step_and_stage(kind: type[Sampler]) -> None:
    watching, condition = Watching([[0.0]], [[[1.0]]]), torch.zeros(2, dtype=torch.int64)
    levels = [3.0, 1.0, 0.5, 0.0]
    x = torch.randn(2, 1, dtype=torch.float64)
    walk(kind(Levels(torch.tensor(levels))), watching, x, condition)
    expected = []
    for here, there in zip(levels, levels[1:], strict=False):
        expected.append(("predictor", here, there, here))
        if kind is Heun and there > 0:
            expected.append(("corrector", here, there, there))
    assert watching.seen == expected
    assert all(each is condition for each in watching.conditions)


def test_steps_yields_each_state_and_restores_grad_mode() -> None:
    x = 5 * torch.ones(1, 2, dtype=torch.float64)
    sampler, denoiser = Euler(Levels(torch.tensor([5.0, 2.0, 0.0]))), gaussian([0, 0], [[1.0, 0], [0, 1.0]])
    states = []
    for trajectory in sampler.steps(denoiser, x, seeds=SampleSeeds(0, [0])):
        assert torch.is_grad_enabled()
        states.append((trajectory.sigma, trajectory.sigma_next, trajectory.x))
    assert [state[:2] for state in states] == [(5.0, 2.0), (2.0, 0.0)]
    torch.testing.assert_close(states[0][2], x * (1 / 26) + 2 / 5 * (x - x / 26))
    torch.testing.assert_close(states[1][2], states[0][2] / 5)
    assert bool((x == 5).all()), "the caller's x was overwritten"


class Energy(GaussianMixture):
    """Needs a gradient through the denoiser; changes the clean estimate but not the noise."""

    def start(self, trajectory: Trajectory) -> Predict:
        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                clean = self(x, sigma, condition)
                (slope,) = torch.autograd.grad(clean.square().sum() / 2, x)
            clean = clean.detach()
            return Prediction(clean - 0.1 * slope, (x.detach() - clean) / sigma)

        return predict


@pytest.mark.parametrize("kind", SAMPLERS)
def test_guidance_may_compute_gradients_inside_a_sampler(kind: type[Sampler]) -> None:
    x = torch.randn(5, 1, dtype=torch.float64) * 3
    grid = geometric(3.0, 0.1, 8)
    end = walk(kind(grid), Energy([[0.0]], [[[1.0]]]), x).x
    assert not end.requires_grad
    assert float(end.abs().sum()) < 0.9 * float(walk(kind(grid), gaussian([0.0], [[1.0]]), x).x.abs().sum())


def test_samples_do_not_depend_on_the_batch() -> None:
    mixture = GaussianMixture([[-1.0, 0.2], [1.0, 0.5]], 0.2 * torch.eye(2).expand(2, 2, 2))
    for sampler in (Euler(), Heun(), DPMSolver2M(), Heun(s_churn=40.0)):
        whole = sampler.sample(mixture, seeds=SampleSeeds(7, range(20, 29))).x
        parts = [sampler.sample(mixture, seeds=SampleSeeds(7, part)).x for part in ([27, 28], range(20, 27))]
        torch.testing.assert_close(whole, torch.cat(parts[::-1]), rtol=0, atol=1e-5)
        assert torch.equal(
            sampler.initial(mixture, SampleSeeds(7, [25])), 80 * SampleSeeds(7, [25]).normal("initial", (2,))
        )


def test_number_of_rows_must_match_the_seeds() -> None:
    denoiser, seeds = gaussian([0.0], [[1.0]]), SampleSeeds(0, range(3))
    with pytest.raises(ValueError, match="x has 2 rows for 3 sample seeds"):
        next(Euler().steps(denoiser, torch.zeros(2, 1), seeds=seeds))
    with pytest.raises(ValueError, match="condition has 1 rows for 3 sample seeds"):
        next(Euler().steps(denoiser, torch.zeros(3, 1), seeds=seeds, condition=torch.zeros(1, dtype=torch.int64)))


# Churn


def churned(levels: list[float], churn: float, low: float, high: float, noise: float, variance: float) -> float:
    """Return the variance after EDM's algorithm 2 on N(0, variance); each step is linear and scales the variance."""
    steps = len(levels) - 1
    V = levels[0] ** 2
    for t, t_next in zip(levels, levels[1:], strict=False):
        gamma = min(churn / steps, math.sqrt(2) - 1) if low <= t <= high else 0.0
        t_hat = t * (1 + gamma)
        V += (t_hat**2 - t**2) * noise**2
        d = t_hat / (t_hat**2 + variance)  # (x - D) / sigma = d x
        factor = 1 + (t_next - t_hat) * d
        if t_next:
            factor = 1 + (t_next - t_hat) * (d + t_next / (t_next**2 + variance) * factor) / 2
        V *= factor**2
    return V


@pytest.mark.parametrize(
    ("churn", "low", "high", "noise"),
    [(40.0, 0.0, math.inf, 1.0), (1e9, 0.05, 50.0, 1.0), (20.0, 0.2, 5.0, 1.15), (5.0, 0.0, math.inf, 0.9)],
)
def test_churn_gives_the_closed_form_variance(churn: float, low: float, high: float, noise: float) -> None:
    grid, variance = KarrasGrid(40, sigma_max=20.0), 0.5
    sampler = Heun(grid, s_churn=churn, s_min=low, s_max=high, s_noise=noise)
    denoiser = gaussian([0.0] * 40, variance * torch.eye(40))
    x = sampler.sample(denoiser, seeds=SampleSeeds(0, range(500))).x
    expected = churned(grid.sigmas().tolist(), churn, low, high, noise, variance)
    assert float(x.var()) == pytest.approx(expected, rel=0.03)  # 20,000 numbers: standard error 1 %
    if noise == 1:
        assert expected == pytest.approx(variance, rel=0.06)
    else:
        assert abs(expected / variance - 1) > 0.06


def test_churn_raises_the_noise_level_only_inside_its_range() -> None:
    watching = Watching([[0.0]], [[[1.0]]])
    levels = [8.0, 4.0, 2.0, 1.0, 0.0]
    walk(Heun(Levels(torch.tensor(levels)), s_churn=0.4, s_min=2.0, s_max=4.0), watching, torch.ones(1, 1).double())
    predicted = [(sigma, at) for stage, sigma, _, at in watching.seen if stage == "predictor"]
    assert [sigma for sigma, _ in predicted] == pytest.approx([8.0, 4.4, 2.2, 1.0])
    assert [at for _, at in predicted] == pytest.approx([8.0, 4.4, 2.2, 1.0])


def test_churn_at_most_doubles_the_variance() -> None:
    watching = Watching([[0.0]], [[[1.0]]])
    walk(Heun(Levels(torch.tensor([4.0, 0.0])), s_churn=1e6), watching, torch.ones(1, 1).double())
    assert watching.seen[0][3] == pytest.approx(4 * math.sqrt(2))


def test_heun_refuses_invalid_churn() -> None:
    for arguments in ({"s_churn": -1.0}, {"s_noise": 0.0}, {"s_min": 2.0, "s_max": 1.0}):
        with pytest.raises(ValueError, match="s_churn >= 0, s_noise > 0 and s_min <= s_max"):
            Heun(**arguments)
