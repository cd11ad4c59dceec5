"""Each preconditioning re-expresses one exact denoiser: the same samples, whatever its network predicts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.guidance import Clipped, Guided
from lightning_guide.network import Network
from lightning_guide.networks import PointMLP
from lightning_guide.noise import FlowGrid, Grid, KarrasGrid, LogUniformGrid
from lightning_guide.noise_schedule import NoiseSchedule, TimestepGrid
from lightning_guide.preconditioning import (
    EDM,
    Consistency,
    EpsilonPrediction,
    Preconditioned,
    Preconditioning,
    RectifiedFlow,
    SamplePrediction,
    VelocityPrediction,
)
from lightning_guide.samplers import (
    DDIM,
    DEIS,
    PLMS,
    DPMSolver2M,
    DPMSolver3M,
    Euler,
    Heun,
    ProportionalAncestral,
    Sampler,
    UniPC,
)
from lightning_guide.seeds import SampleSeeds

STABLE_DIFFUSION = NoiseSchedule("scaled_linear", beta_start=0.00085, beta_end=0.012)
ZERO_SNR = NoiseSchedule("scaled_linear", beta_start=0.00085, beta_end=0.012, zero_snr=True)
COSINE = NoiseSchedule("cosine")
PRECONDITIONINGS: dict[str, Preconditioning] = {
    "edm": EDM(0.5),
    "edm, another deviation": EDM(1.3),
    "epsilon": EpsilonPrediction(STABLE_DIFFUSION),
    "epsilon, cosine": EpsilonPrediction(COSINE),
    "velocity": VelocityPrediction(STABLE_DIFFUSION),
    "velocity, zero SNR": VelocityPrediction(ZERO_SNR),
    "velocity, any level": VelocityPrediction(),
    "sample": SamplePrediction(NoiseSchedule()),
    "flow": RectifiedFlow(),
    "flow, reversed": RectifiedFlow(1.0, reverse=True),
    "consistency": Consistency(),
}
SAMPLERS: dict[str, type[Sampler]] = {
    cls.__name__: cls for cls in (Euler, Heun, DPMSolver2M, PLMS, DDIM, ProportionalAncestral)
}


def mixture() -> GaussianMixture:
    """Three Gaussians in the plane."""
    means, spread = [[-0.6, 0.1], [0.5, 0.5], [0.3, -0.7]], [[0.05, 0.02], [0.02, 0.08]]
    return GaussianMixture(means, [spread] * 3, weights=[0.5, 0.3, 0.2]).double()


def level(preconditioning: Preconditioning, c_noise: Tensor) -> Tensor:
    """The noise level that a network of this kind reads from its `c_noise`."""
    if isinstance(preconditioning, EDM) or getattr(preconditioning, "schedule", 0) is None:
        return (4 * c_noise).exp()
    if isinstance(preconditioning, Consistency):
        return (c_noise / 250).exp()
    if isinstance(preconditioning, RectifiedFlow):
        t = c_noise / preconditioning.scale
        return (1 - t) / t if preconditioning.reverse else t / (1 - t)
    return preconditioning.schedule.sigma(c_noise)  # type: ignore[attr-defined]


class Exact(Network):
    """The network that makes the exact denoiser of `mixture` under a preconditioning."""

    data_shape = (2,)
    num_classes = 0

    def __init__(self, preconditioning: Preconditioning) -> None:
        super().__init__()
        self.preconditioning, self.data = preconditioning, mixture()

    def embed(self, condition: Tensor | None, batch: int) -> None:
        return None

    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        sigma = level(self.preconditioning, c_noise)
        c = self.preconditioning.coefficients(sigma)
        raw = x / c.input[:, None]
        return (self.data(raw, sigma) - c.skip[:, None] * raw) / c.out[:, None]


def model(preconditioning: Preconditioning) -> Preconditioned:
    """The exact denoiser in the form of a network under `preconditioning`."""
    return Preconditioned(Exact(preconditioning), preconditioning)


@pytest.mark.parametrize("name", PRECONDITIONINGS)
def test_exact_network_gives_the_exact_denoiser(name: str) -> None:
    exact, denoiser = mixture(), model(PRECONDITIONINGS[name])
    x = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = torch.logspace(math.log10(0.03), math.log10(14.0), 64, dtype=torch.float64)
    x = x * (1 + sigma[:, None])
    torch.testing.assert_close(denoiser(x, sigma), exact(x, sigma), rtol=1e-10, atol=1e-10)
    assert denoiser(x, sigma).dtype == torch.float64


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", PRECONDITIONINGS)
def test_all_sample_what_the_exact_denoiser_samples(name: str, sampler: str) -> None:
    grid = LogUniformGrid(12, sigma_min=0.03, sigma_max=14.0)
    x = 14 * torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def end(denoiser) -> Tensor:  # noqa: ANN001
        *_, last = SAMPLERS[sampler](grid).steps(denoiser, x, seeds=SampleSeeds(0, range(32)))
        return last.x

    torch.testing.assert_close(end(model(PRECONDITIONINGS[name])), end(mixture()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PRECONDITIONINGS)
def test_guidance_gives_the_same_whatever_the_networks_predict(name: str) -> None:
    other = model(PRECONDITIONINGS[name])
    worse = gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]).double()
    x = 14 * torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sampler = Heun(LogUniformGrid(8, sigma_min=0.03, sigma_max=14.0))
    ends = []
    for positive in (mixture(), other):
        *_, last = sampler.steps(Guided([worse], [1.7], positive=positive), x, seeds=SampleSeeds(0, range(16)))
        ends.append(last.x)
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)


def test_float32_stays_float32_and_agrees() -> None:
    for name, preconditioning in PRECONDITIONINGS.items():
        network = Exact(preconditioning)
        denoiser = Preconditioned(network, preconditioning)
        x, sigma = torch.tensor([[1.5, -2.0]]), torch.tensor(3.0)
        double = denoiser(x.double(), sigma.double())
        single = denoiser(x, sigma)
        assert single.dtype == torch.float32, name
        torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


def test_known_levels_of_schedules() -> None:
    """First and last levels of four published schedules, derived by hand from their betas."""
    first, last = 1 - 0.00085, torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double().square()
    assert float(STABLE_DIFFUSION.sigmas()[0]) == pytest.approx(math.sqrt((1 - first) / first), rel=1e-9)
    abar = float((1 - last).prod())
    assert STABLE_DIFFUSION.sigma_max == pytest.approx(math.sqrt((1 - abar) / abar), rel=1e-4)
    assert STABLE_DIFFUSION.sigma_max == pytest.approx(14.6146, abs=1e-3)
    assert NoiseSchedule().sigma_max == pytest.approx(157.407, abs=1e-2)
    assert COSINE.sigma_max == pytest.approx(20291, rel=1e-3)
    assert ZERO_SNR.sigma_max == pytest.approx(4096, rel=1e-6)
    assert float(ZERO_SNR.sigmas()[0]) == pytest.approx(float(STABLE_DIFFUSION.sigmas()[0]), rel=1e-9)


def test_levels_and_timesteps_invert_each_other() -> None:
    k = torch.linspace(0, 999, 1234, dtype=torch.float64)
    for schedule in (STABLE_DIFFUSION, ZERO_SNR, COSINE, NoiseSchedule([0.01 * (i + 1) for i in range(60)])):
        inside = k[k <= schedule.num_timesteps - 1]
        torch.testing.assert_close(schedule.timestep(schedule.sigma(inside)), inside, rtol=0, atol=1e-8)


def test_rounded_timesteps_are_those_of_float32_levels_too() -> None:
    for rounding in ("nearest", "floor"):
        schedule = NoiseSchedule("scaled_linear", beta_start=0.00085, beta_end=0.012, rounding=rounding)
        k = torch.arange(1000)
        assert torch.equal(schedule.timestep(schedule.sigma(k).float()), k.double())
    floor = schedule.timestep(schedule.sigma(torch.tensor([10.5, 10.9])))
    assert floor.tolist() == [10.0, 10.0]


@pytest.mark.parametrize(
    ("name", "high"), [("epsilon", 14.61465), ("velocity, zero SNR", 4096.0), ("flow", 1e6), ("edm", 80.0)]
)
def test_sampler_without_a_grid_takes_the_models_own(name: str, high: float) -> None:
    denoiser = model(PRECONDITIONINGS[name])
    for inner in (denoiser, Guided([mixture()], [2.0], positive=denoiser), Clipped(positive=denoiser)):
        levels = Euler(8).levels(inner)
        assert float(levels[0]) == pytest.approx(high, rel=1e-5) and len(levels) == 9 and levels[-1] == 0


def test_grid_above_the_model_is_refused() -> None:
    denoiser = model(PRECONDITIONINGS["epsilon"])
    with pytest.raises(ValueError, match=r"starts at sigma = 80, .* noise levels up to 14\.6146; give the sampler"):
        Heun(KarrasGrid(4)).sample(denoiser, seeds=SampleSeeds(0, range(2)))
    Heun(KarrasGrid(4, sigma_max=14.6146)).sample(denoiser, seeds=SampleSeeds(0, range(2)))


GRIDS: list[Grid] = [
    TimestepGrid(NoiseSchedule(), 7, spacing="leading", offset=1),
    TimestepGrid(NoiseSchedule(), 7, spacing="trailing"),
    TimestepGrid(ZERO_SNR, 1000, spacing="trailing"),
    TimestepGrid(NoiseSchedule(), 7),
    FlowGrid(1),
    FlowGrid(28, shift=3.0),
    FlowGrid(28, shift=3.0, last=0.003),
]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{type(grid).__name__}-{grid.recipe['init_args']}")
def test_grids_descend_to_zero(grid: Grid) -> None:
    levels = grid.sigmas()
    assert levels.dtype == torch.float64 and levels[-1] == 0 and bool((levels.diff() < 0).all())
    assert len(levels) == grid.num_steps + 1  # type: ignore[attr-defined]


def test_shift_of_flow_is_a_factor_of_the_levels() -> None:
    t = 1 - torch.arange(1, 8, dtype=torch.float64) / 8
    shifted = 3 * t / (1 + 2 * t)
    torch.testing.assert_close(FlowGrid(8, shift=3.0).sigmas()[1:-1], shifted / (1 - shifted))


@pytest.mark.parametrize("high", [1e4, 1e6, 1e8])
def test_samplers_are_bounded_on_grids_that_begin_near_infinity(high: float) -> None:
    exact = mixture()
    z = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def end(sampler: Sampler) -> Tensor:
        *_, last = sampler.steps(exact, high * z, seeds=SampleSeeds(0, range(64)))
        return last.x

    fine = end(Euler(FlowGrid(3000, shift=3.0, sigma_max=high)))
    for kind in (Heun, PLMS, DPMSolver2M, DPMSolver3M, UniPC, DEIS):
        error = float((end(kind(FlowGrid(14, shift=3.0, sigma_max=high))) - fine).square().mean().sqrt())
        assert error < (0.05 if kind is Heun else 0.1), kind


def test_plms_is_of_higher_order_than_euler() -> None:
    exact, seeds = mixture(), SampleSeeds(0, range(64))
    x = 10 * torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def end(sampler: Sampler) -> Tensor:
        *_, last = sampler.steps(exact, x, seeds=seeds)
        return last.x

    schedule = PRECONDITIONINGS["epsilon"].schedule  # type: ignore[attr-defined]
    fine = end(Heun(TimestepGrid(schedule, 1000)))
    errors = [float((end(cls(TimestepGrid(schedule, 50))) - fine).square().mean().sqrt()) for cls in (PLMS, Euler)]
    assert errors[0] < errors[1] / 3, errors


def test_clipped_follows_the_clipped_or_the_unclipped_noise() -> None:
    exact, x, sigma = mixture(), torch.tensor([[3.0, -2.5]], dtype=torch.float64), torch.tensor(0.5).double()
    clean = exact(x, sigma)
    limit = float(clean.abs().max()) / 2
    x_next = {}
    for follow in (True, False):
        grid = LogUniformGrid(2, sigma_min=0.25, sigma_max=0.5)
        walk = Euler(grid).steps(Clipped(limit, follow=follow, positive=exact), x, seeds=SampleSeeds(0, [0]))
        x_next[follow] = next(iter(walk)).x.clone()
    clipped = clean.clamp(-limit, limit)
    torch.testing.assert_close(x_next[True], clipped + 0.25 * (x - clipped) / 0.5)
    torch.testing.assert_close(x_next[False], clipped + 0.25 * (x - clean) / 0.5)


def test_recipes_are_rebuilt() -> None:
    from lightning_guide.utils.recipe import build

    for preconditioning in PRECONDITIONINGS.values():
        denoiser = Preconditioned(PointMLP((2,), width=8), preconditioning)
        again = build(denoiser.recipe)
        assert again.recipe == denoiser.recipe and again.sigma_max == denoiser.sigma_max


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: NoiseSchedule("linear", beta_end=1.5), "needs 2 or more betas between 0 and 1"),
        (lambda: NoiseSchedule("linearly"), "is linear, scaled_linear, cosine or a list of betas, got 'linearly'"),
        (lambda: NoiseSchedule(rounding="up"), "rounding of timesteps is interpolate, nearest or floor"),
        (lambda: TimestepGrid(NoiseSchedule(), 1001), "at most 1000 steps, one for each timestep, got 1001"),
        (lambda: TimestepGrid(NoiseSchedule(), 5, spacing="even"), "is leading, trailing or linspace, got 'even'"),
        (lambda: FlowGrid(4, sigma_max=2.0), "sigma_max=2 of FlowGrid is below its next level 3"),
        (lambda: RectifiedFlow(0.0), "scale must be positive"),
        (lambda: Consistency(sigma_min=90.0), "needs 0 < sigma_min < sigma_max"),
        (lambda: Clipped(-1.0), "needs limit > 0"),
        (lambda: Preconditioned(torch.nn.Linear(2, 2), EDM()), "the network is a Linear; expected an lg.Network"),
    ],
)
def test_impossible_settings_are_refused(make, sentence: str) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=sentence):
        make()
