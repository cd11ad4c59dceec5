"""DDIM and ancestral samplers: published variance-preserving updates, marginals, the two definitions of eta."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lightning_guide.denoiser import Predict, Trajectory
from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.guidance import Clipped, Guided
from lightning_guide.guidance.combinations import (
    AdaptiveProjection,
    Combination,
    Plain,
    RectifiedGradient,
    Rescale,
    Tangential,
)
from lightning_guide.guidance.negatives.cfg_pp import RenoiseWithNegative
from lightning_guide.noise import CustomGrid, KarrasGrid
from lightning_guide.samplers import DDIM, Ancestral, Euler, LearnedVariance, ProportionalAncestral
from lightning_guide.seeds import SampleSeeds

MEANS, COVARIANCES = [[1.0, 0.2], [-0.8, -0.6]], 0.2 * torch.eye(2).expand(2, 2, 2)
MIXTURE = GaussianMixture(MEANS, COVARIANCES)
GRID = KarrasGrid(10, sigma_min=0.05, sigma_max=8.0)


def last(sampler: Ancestral | Euler, x: torch.Tensor) -> torch.Tensor:
    *_, end = sampler.steps(MIXTURE, x, seeds=SampleSeeds(3, range(len(x))))
    return end.x


@pytest.mark.parametrize("kind", [DDIM, ProportionalAncestral])
def test_eta_zero_equals_euler(kind: type[Ancestral]) -> None:
    x = 8 * torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(last(kind(GRID, eta=0.0), x), last(Euler(GRID), x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_equals_the_published_variance_preserving_update(eta: float) -> None:
    """x_{t-1} = sqrt(abar') D + sqrt(1 - abar' - s^2) eps + s n with the s of Song et al., equation 16."""
    levels = GRID.sigmas().tolist()
    x = 8 * torch.randn(5, 2, dtype=torch.float64)
    seeds = SampleSeeds(3, range(5))
    vp = x / math.sqrt(1 + levels[0] ** 2)
    for t, t_next in zip(levels, levels[1:], strict=False):
        abar, abar_next = 1 / (1 + t**2), 1 / (1 + t_next**2)
        D = MIXTURE(vp / math.sqrt(abar), torch.tensor(t, dtype=torch.float64))
        eps = (vp - math.sqrt(abar) * D) / math.sqrt(1 - abar)
        s = eta * math.sqrt((1 - abar_next) / (1 - abar)) * math.sqrt(1 - abar / abar_next)
        vp = math.sqrt(abar_next) * D + math.sqrt(max(1 - abar_next - s**2, 0)) * eps
        if t_next:
            vp = vp + s * seeds.normal("ancestral", (2,)).double()
    torch.testing.assert_close(last(DDIM(GRID, eta=eta), x), vp, rtol=1e-9, atol=1e-9)


def test_eta_one_equals_the_posterior_of_ddpm() -> None:
    """x' = x + (1 - sigma'^2 / sigma^2) (D - x) + (sigma' / sigma) sqrt(sigma^2 - sigma'^2) n."""
    levels = GRID.sigmas().tolist()
    x = start = 8 * torch.randn(5, 2, dtype=torch.float64)
    seeds = SampleSeeds(3, range(5))
    for t, t_next in zip(levels, levels[1:], strict=False):
        D = MIXTURE(x, torch.tensor(t, dtype=torch.float64))
        x = x + (1 - t_next**2 / t**2) * (D - x)
        if t_next:
            x = x + t_next / t * math.sqrt(t**2 - t_next**2) * seeds.normal("ancestral", (2,)).double()
    torch.testing.assert_close(last(DDIM(GRID), start), x, rtol=1e-9, atol=1e-9)


class Uncertain(GaussianMixture):
    """The mixture, with v of learned variances."""

    v = torch.tensor([[0.0, 1.0], [0.3, 0.5]], dtype=torch.float64)

    def start(self, trajectory: Trajectory) -> Predict:
        predict = super().start(trajectory)
        return lambda x, sigma, condition: replace(predict(x, sigma, condition), variance=self.v)


def test_learned_variances_lie_between_both_limits_of_the_posterior() -> None:
    """Nichol and Dhariwal, equation 15, in the variance-preserving form of one step: v = 0 is beta~, v = 1 is beta."""
    model, t, t_next = Uncertain(MEANS, COVARIANCES), 3.0, 0.7
    x, seeds = 3 * torch.randn(2, 2, dtype=torch.float64), SampleSeeds(3, range(2))
    step = next(LearnedVariance(CustomGrid([t, t_next])).steps(model, x, seeds=seeds))
    abar, abar_next = 1 / (1 + t**2), 1 / (1 + t_next**2)
    beta, D = 1 - abar / abar_next, model(x, torch.tensor(t, dtype=torch.float64))
    small = (1 - abar_next) / (1 - abar) * beta
    mean = (math.sqrt(abar_next) * beta * D + math.sqrt(1 - beta) * (1 - abar_next) * x * math.sqrt(abar)) / (1 - abar)
    std = torch.exp(model.v * math.log(beta) + (1 - model.v) * math.log(small)).sqrt()
    expected = mean + std * SampleSeeds(3, range(2)).normal("ancestral", (2,)).double()
    torch.testing.assert_close(step.x * math.sqrt(abar_next), expected, rtol=1e-9, atol=1e-9)
    assert (std[0, 1] / std[0, 0]) > 1.3
    with pytest.raises(ValueError, match="LearnedVariance needs a model that predicts variances"):
        next(LearnedVariance(GRID).steps(MIXTURE, x, seeds=SampleSeeds(3, range(2))))


COMBINATIONS: list[Combination] = [
    *(Plain(), Rescale(0.7), Tangential(), AdaptiveProjection(), RectifiedGradient()),
    RenoiseWithNegative(),
]


@pytest.mark.parametrize("rule", COMBINATIONS, ids=lambda rule: type(rule).__name__)
def test_guided_predictions_keep_the_variances_of_their_positive(rule: Combination) -> None:
    model, x = Uncertain(MEANS, COVARIANCES), torch.randn(2, 2, dtype=torch.float64)
    bad = gaussian(torch.zeros(2), torch.eye(2))
    guided = Clipped(3.0, positive=Guided([bad], [2.0], positive=model, combination=rule))
    trajectory = Trajectory(x=x, seeds=SampleSeeds(0, range(2)), sigma=1.0)
    prediction = guided.start(trajectory)(x, torch.tensor(1.0, dtype=torch.float64), None)
    assert prediction.variance is model.v and not torch.equal(prediction.clean, model(x, torch.tensor(1.0)))


def test_proportional_ancestral_equals_the_code_of_freedom() -> None:
    """x' = D + sigma' (sqrt(1 - eta^2) eps + eta n)."""
    levels = GRID.sigmas().tolist()
    x = start = 8 * torch.randn(5, 2, dtype=torch.float64)
    seeds = SampleSeeds(3, range(5))
    for t, t_next in zip(levels, levels[1:], strict=False):
        D = MIXTURE(x, torch.tensor(t, dtype=torch.float64))
        eps, x = (x - D) / t, D
        if t_next:
            x = D + t_next * (math.sqrt(0.75) * eps + 0.5 * seeds.normal("ancestral", (2,)).double())
    torch.testing.assert_close(last(ProportionalAncestral(GRID, eta=0.5), start), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "eta"), [(DDIM, 1.0), (DDIM, 0.5), (ProportionalAncestral, 0.3)])
def test_variance_equals_its_closed_form(kind: type[Ancestral], eta: float) -> None:
    """On N(0, v): V <- ((v + sigma k) / (v + sigma^2))^2 V + s^2 with k^2 + s^2 = sigma'^2."""
    v, V = 0.5, GRID.sigmas()[0].item() ** 2
    for t, t_next in zip(GRID.sigmas().tolist(), GRID.sigmas().tolist()[1:], strict=False):
        s = eta * t_next * (math.sqrt(1 - t_next**2 / t**2) if kind is DDIM else 1.0)
        V = ((v + t * math.sqrt(t_next**2 - s**2)) / (v + t**2)) ** 2 * V + s**2
    denoiser = gaussian([0.0] * 40, v * torch.eye(40))
    x = kind(GRID, eta=eta).sample(denoiser, seeds=SampleSeeds(0, range(400))).x
    assert float(x.var()) == pytest.approx(V, rel=0.03)  # 16,000 numbers: standard error 1.1 %


def test_samples_do_not_depend_on_the_batch() -> None:
    whole = DDIM(GRID).sample(MIXTURE, seeds=SampleSeeds(7, range(6))).x
    part = DDIM(GRID).sample(MIXTURE, seeds=SampleSeeds(7, [4])).x
    torch.testing.assert_close(whole[4:5], part, rtol=0, atol=1e-5)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_out_of_range_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match="DDIM needs eta between 0"):
        DDIM(eta=eta)
