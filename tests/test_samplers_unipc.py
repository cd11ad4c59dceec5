"""UniPC and DPM-Solver++(3M): orders of accuracy, identities, weights."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch

from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.noise import Grid, KarrasGrid
from lightning_guide.samplers import DPMSolver2M, DPMSolver3M, Euler, Sampler, UniPC
from lightning_guide.samplers.unipc import multistep_weights
from lightning_guide.seeds import SampleSeeds
from tests.sampler_orders import COVARIANCE, HIGH, MEAN, orders, walk

MIXTURE = GaussianMixture([[-1.0, 0.2], [1.0, 0.5], [0.1, -1.0]], 0.2 * torch.eye(2).expand(3, 2, 2), [1, 2, 1])


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

        def step(self, trajectory, predict, sigma, sigma_next, memory):
            raise AssertionError

        def steps(self, denoiser_, x, *, seeds, condition=None):
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
    torch.testing.assert_close(walk(one(grid), MIXTURE, x), walk(other(grid), MIXTURE, x))


@pytest.mark.parametrize("steps", [1, 2, 3, 9])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_one_network_call_a_step(order: int, steps: int) -> None:
    end = UniPC(steps, order=order).sample(MIXTURE, seeds=SampleSeeds(0, range(3)))
    assert end.evaluations == steps and bool(end.x.isfinite().all())


def test_few_steps_are_closer_than_those_of_lower_order() -> None:
    x = 80 * torch.randn(200, 2, dtype=torch.float64)
    exact = walk(UniPC(400, order=3), MIXTURE, x)
    error = {
        name: float((walk(sampler, MIXTURE, x) - exact).norm(dim=1).mean())
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
