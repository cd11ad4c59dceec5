"""SIMS: the law of Gaussians, its ends, and which weights are stable."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.guidance import SIMS, Guided, Interval, Main, Neon
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers import DPMSolver2M, Euler, Heun
from lightning_guide.seeds import SampleSeeds

STEPS = Heun(KarrasGrid(200, sigma_max=1000.0))


class Pair:
    """A base under evaluation and its auxiliary."""

    def __init__(self, main: Denoiser, auxiliary: Denoiser) -> None:
        self.main, self.auxiliary = main, auxiliary

    def snapshot(self, *, run: str | None, images: int | float | str, sigma_rel: float) -> Denoiser:
        return self.auxiliary


def spread(*variances: float, turn: float = 0.5) -> GaussianMixture:
    """A Gaussian in the plane, its axes turned by `turn`."""
    c, s = math.cos(turn), math.sin(turn)
    rotation = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    return gaussian([0.0, 0.0], rotation @ torch.diag(torch.tensor(variances).double()) @ rotation.T)


def pushed(denoiser: Denoiser) -> Tensor:
    """Covariance of the samples, by their linear map; no sampling."""
    x = 1000.0 * torch.eye(2, dtype=torch.float64)
    *_, end = STEPS.steps(denoiser, x, seeds=SampleSeeds(0, [0, 1]))
    return end.x.T @ end.x


@pytest.mark.parametrize("omega", [-0.5, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("variances", [((2.0, 0.5), (1.6, 0.6)), ((2.0, 2.0), (1.6, 1.6)), ((0.3, 1.0), (0.27, 1.2))])
def test_variances_extrapolate_in_the_logarithm(
    omega: float, variances: tuple[tuple[float, float], tuple[float, float]]
) -> None:
    base, auxiliary = variances
    found = pushed(SIMS(spread(*auxiliary), 1 + omega, base=spread(*base)))
    expected = [r ** (1 + omega) * s**-omega for r, s in zip(base, auxiliary, strict=True)]
    turned = torch.linalg.eigvalsh(found)
    torch.testing.assert_close(turned, torch.tensor(expected).double().sort().values, rtol=5e-3, atol=0)
    c, s = math.cos(0.5), math.sin(0.5)
    axis = torch.tensor([c, s], dtype=torch.float64)
    assert float(axis @ found @ axis) == pytest.approx(expected[0], rel=5e-3)


def test_equal_spreads_extrapolate_the_mean() -> None:
    base, auxiliary = gaussian([0.4], [[0.3]]), gaussian([0.1], [[0.3]])
    *_, end = STEPS.steps(SIMS(auxiliary, 2.5, base=base), torch.zeros(1, 1).double(), seeds=SampleSeeds(0, [0]))
    assert float(end.x) == pytest.approx(2.5 * 0.4 - 1.5 * 0.1, rel=2e-3)


@pytest.mark.parametrize("sampler", [Euler(), Heun(s_churn=8.0), DPMSolver2M()])
def test_without_weight_it_is_the_base_to_the_bit(sampler: Euler | Heun | DPMSolver2M) -> None:
    """omega = 0: the auxiliary, a reference that cannot be called, is not evaluated."""
    base = spread(0.3, 0.5)
    plain = sampler.sample(base, seeds=SampleSeeds(3, range(5)))
    guided = sampler.sample(SIMS(Main(), 1.0, base=base), seeds=SampleSeeds(3, range(5)))
    assert torch.equal(guided.x, plain.x) and guided.evaluations == plain.evaluations


def test_omega_minus_one_is_the_auxiliary_to_the_bit() -> None:
    base, auxiliary = spread(0.3, 0.5), spread(0.2, 0.6)
    alone = Heun().sample(auxiliary, seeds=SampleSeeds(3, range(5)))
    assert torch.equal(Heun().sample(SIMS(auxiliary, 0.0, base=base), seeds=SampleSeeds(3, range(5))).x, alone.x)


class Affine(Denoiser):
    """D = x / (1 + sigma^2) W + b / (1 + sigma): linear in its parameters."""

    data_shape, num_classes, sigma_data = (3,), 0, 0.5

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(torch.eye(3) + 0.1 * torch.randn(3, 3, generator=generator))
        self.bias = torch.nn.Parameter(torch.randn(3, generator=generator))

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        return x / (1 + sigma**2) @ self.weight + self.bias / (1 + sigma)


@pytest.mark.parametrize("weight", [0.5, 1.7, 3.0])
def test_neon_is_the_same_for_a_model_linear_in_its_parameters(weight: float) -> None:
    models = Pair(Affine(0), Affine(1))
    sims, neon = (kind(models.auxiliary, weight).resolve(models) for kind in (SIMS, Neon))
    one, other = (Heun().sample(each, seeds=SampleSeeds(0, range(6))) for each in (sims, neon))
    torch.testing.assert_close(one.x, other.x, rtol=1e-4, atol=1e-4)
    assert (one.evaluations, other.evaluations) == (126, 63)
    assert (one.x - Heun().sample(models.main, seeds=SampleSeeds(0, range(6))).x).abs().max() > 0.05


@pytest.mark.parametrize(
    ("base", "auxiliary", "weight", "bound"),
    [
        (spread(2.0, 0.5), spread(1.6, 0.6), 5.1, "w < 5"),  # V_a / V_b = 0.8: w (1 - 0.8) < 1
        (spread(1.0, 1.0), spread(0.5, 1.5), 2.2, "w < 2 and w > -2"),
        (spread(1.0, 1.0), spread(1.5, 1.5), -2.2, "w > -2"),
        (spread(1.0, 0.4), spread(0.9, 0.3, turn=1.2), 9.0, "w < "),  # different axes
    ],
)
def test_unstable_weights_are_refused(
    base: GaussianMixture, auxiliary: GaussianMixture, weight: float, bound: str
) -> None:
    models = Pair(base, auxiliary)
    with pytest.raises(ValueError, match=f"SIMS at weight {weight:g} is unstable .* expected {bound}"):
        SIMS(auxiliary, weight).resolve(models)


def test_weight_schedules_are_not_checked_for_stability() -> None:
    base, auxiliary = spread(2.0, 0.5), spread(1.6, 0.6)
    weight = Interval(9.0, 0.1, 1.0)
    assert isinstance(SIMS(auxiliary, weight).resolve(Pair(base, auxiliary)), SIMS)  # type: ignore[arg-type]


@pytest.mark.parametrize("turn", [0.5, 1.2])
def test_the_bound_is_where_the_flow_first_pushes_away(turn: float) -> None:
    """Just below it the drift points inward at every level; just above it does not at small ones."""
    base, auxiliary = spread(1.0, 0.4), spread(0.9, 0.3, turn=turn)
    models = Pair(base, auxiliary)
    with pytest.raises(ValueError, match="is unstable") as caught:
        SIMS(auxiliary, 100.0).resolve(models)
    bound = float(str(caught.value).split("w < ")[1].split(" ")[0])
    x = torch.eye(2, dtype=torch.float64)
    lowest = {}
    for weight in (0.999 * bound, 1.001 * bound):
        guided = Guided([auxiliary], [weight], positive=base)  # SIMS refuses the second
        levels = torch.logspace(-4, 2, 60, dtype=torch.float64)
        drifts = [(x - guided(x, s)) / s**2 for s in levels]  # symmetric: sum of c_i (V_i + s^2)^-1
        lowest[weight] = min(float(torch.linalg.eigvalsh((d + d.T) / 2).min()) for d in drifts)
    below, above = lowest.values()
    assert below > 0 > above
    SIMS(auxiliary, 0.999 * bound).resolve(models)


def test_the_weight_is_finite() -> None:
    with pytest.raises(ValueError, match="SIMS needs finite weights, got .inf."):
        SIMS(Main(), math.inf)
