"""UniPC and DPM-Solver++(3M): orders of accuracy, identities, weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.noise import Grid, KarrasGrid
from lightning_guide.samplers import DPMSolver2M, DPMSolver3M, Euler, Sampler, UniPC
from lightning_guide.samplers.unipc import multistep_weights
from lightning_guide.seeds import SampleSeeds

HIGH, LOW = 8.0, 0.1
MEAN, COVARIANCE = torch.tensor([0.3, -0.2]).double(), torch.tensor([[2.0, 1.0], [1.0, 1.5]]).double()
MIXTURE = GaussianMixture([[-1.0, 0.2], [1.0, 0.5], [0.1, -1.0]], 0.2 * torch.eye(2).expand(3, 2, 2), [1, 2, 1])


class Graded(Grid):
    """About n equal steps h in ln sigma from HIGH to LOW, after steps h^2, 2 h^2, ... < h, and two steps more.

    The first step is of first order, and so is the last one of a trajectory: with these lengths neither hides the order
    of the steps between.
    """

    def __init__(self, n: int) -> None:
        span = math.log(HIGH / LOW)
        h = span / n
        times, step = [0.0], h * h
        while step < h:
            times.append(times[-1] + step)
            step *= 2
        rest = span - times[-1]
        count = math.ceil(rest / h)
        times += [times[-1] + rest * (i + 1) / count for i in range(count)]
        self.end = len(times) - 1
        self.levels = HIGH * torch.tensor([*times, span + h, span + 2 * h], dtype=torch.float64).neg().exp()

    def sigmas(self) -> Tensor:
        return self.levels


def state_at_low(kind: Callable[[Grid], Sampler], n: int, x: Tensor) -> Tensor:
    """Return the state at LOW, two steps before the end."""
    grid = Graded(n)
    states = kind(grid).steps(gaussian(MEAN, COVARIANCE), x, seeds=SampleSeeds(0, range(len(x))))
    for _ in range(grid.end):
        trajectory = next(states)
    assert trajectory.sigma_next == pytest.approx(LOW)
    return trajectory.x


def orders(kind: Callable[[Grid], Sampler]) -> list[float]:
    """Return log2 of the ratios of errors when the number of steps doubles."""
    x = HIGH * torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values, vectors = torch.linalg.eigh(COVARIANCE)
    scale = ((values + LOW**2) / (values + HIGH**2)).sqrt()
    exact = MEAN + (x - MEAN) @ vectors @ torch.diag(scale) @ vectors.T
    errors = [float((state_at_low(kind, n, x) - exact).abs().max()) for n in (64, 128, 256)]
    return [math.log2(coarse / fine) for coarse, fine in zip(errors, errors[1:], strict=False)]


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        (functools.partial(UniPC, order=1, corrector=False), 1),
        (functools.partial(UniPC, order=2, corrector=False), 2),
        (DPMSolver3M, 3),
        (functools.partial(UniPC, order=1), 2),  # the corrector adds one
        (functools.partial(UniPC, order=2), 3),
        (functools.partial(UniPC, order=3), 4),
    ],
)
def test_order_of_accuracy(kind: Callable[[Grid], Sampler], order: int) -> None:
    assert orders(kind) == pytest.approx([order] * 2, abs=0.3)


def test_half_of_the_quadratic_term_as_in_another_library_leaves_second_order() -> None:
    diffusers = pytest.importorskip("diffusers", reason="measures the order of a scheduler of diffusers")
    denoiser = gaussian(MEAN, COVARIANCE)

    class Theirs(Sampler):
        """EDMDPMSolverMultistepScheduler with solver_order 3, on our levels."""

        def step(self, trajectory, predict, sigma, sigma_next, memory):  # type: ignore[no-untyped-def]
            raise AssertionError

        def steps(self, denoiser_, x, *, seeds, condition=None):  # type: ignore[no-untyped-def]
            scheduler = diffusers.EDMDPMSolverMultistepScheduler(
                solver_order=3, sigma_max=HIGH, lower_order_final=False
            )
            levels = self.grid.sigmas()  # type: ignore[union-attr]
            scheduler.set_timesteps(len(levels) - 1)
            scheduler.sigmas, scheduler.timesteps, scheduler._step_index = levels, levels[:-1].clone(), 0
            for sigma, sigma_next in zip(levels, levels[1:], strict=False):
                skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
                output = (denoiser(x, sigma) - skip * x) / out
                x = scheduler.step(output, sigma, x, return_dict=False)[0]
                yield type("State", (), {"x": x, "sigma_next": float(sigma_next)})

    assert orders(Theirs) == pytest.approx([2, 2], abs=0.1)
    assert min(orders(DPMSolver3M)) > 2.9


def walk(sampler: Sampler, x: Tensor) -> Tensor:
    *_, last = sampler.steps(MIXTURE, x, seeds=SampleSeeds(0, range(len(x))))
    return last.x


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (functools.partial(UniPC, order=1, corrector=False), Euler),
        (functools.partial(UniPC, order=2, corrector=False), DPMSolver2M),
        (functools.partial(UniPC, order=3, corrector=False), DPMSolver3M),
    ],
)
def test_without_corrector_it_is_a_known_sampler(
    one: Callable[[Grid], Sampler], other: Callable[[Grid], Sampler]
) -> None:
    x, grid = 5 * torch.randn(6, 2, dtype=torch.float64), KarrasGrid(12, sigma_max=5.0)
    torch.testing.assert_close(walk(one(grid), x), walk(other(grid), x))


@pytest.mark.parametrize("steps", [1, 2, 3, 9])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_one_network_call_a_step(order: int, steps: int) -> None:
    end = UniPC(steps, order=order).sample(MIXTURE, seeds=SampleSeeds(0, range(3)))
    assert end.evaluations == steps and bool(end.x.isfinite().all())


def test_few_steps_are_closer_than_those_of_lower_order() -> None:
    x = 80 * torch.randn(200, 2, dtype=torch.float64)
    exact = walk(UniPC(400, order=3), x)
    error = {
        name: float((walk(sampler, x) - exact).norm(dim=1).mean())
        for name, sampler in (("first", Euler(12)), ("second", DPMSolver2M(12)), ("unipc", UniPC(12, order=3)))
    }
    assert error["unipc"] < error["second"] < error["first"]


@pytest.mark.parametrize("h", [0.01, 0.5, 3.0])
def test_weights_integrate_polynomials_exactly(h: float) -> None:
    distances = [-0.7 * h, -1.5 * h, h]
    weights = multistep_weights(h, distances)
    t = torch.linspace(0, h, 20001, dtype=torch.float64)
    for coefficients in ((1.0, 0.0, 0.0), (0.3, -2.0, 0.0), (0.5, 1.0, 4.0)):
        D = sum(c * t ** (k + 1) for k, c in enumerate(coefficients))
        exact = torch.trapezoid((t - h).exp() * D, t)
        ours = sum(w * sum(c * d ** (k + 1) for k, c in enumerate(coefficients)) for w, d in zip(weights, distances))  # noqa: B905
        assert ours == pytest.approx(float(exact), rel=1e-6)


def test_orders_beyond_three_are_refused() -> None:
    with pytest.raises(ValueError, match="UniPC has order 1, 2 or 3, got 4"):
        UniPC(order=4)
