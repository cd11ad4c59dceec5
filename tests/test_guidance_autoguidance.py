"""Autoguidance, its blend with classifier-free guidance, and the Gaussian oracle of both and of SIMS.

For Gaussian models the guided flow is linear, dx/ds = s [w (V_good + s^2)^-1 - (w - 1) (V_bad + s^2)^-1] x, so a
sampler maps the covariance of its noise to that of its samples without any sampling error.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import scipy.integrate
import torch

from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.guidance import (
    Autoguidance,
    AutoguidanceBlend,
    ClassifierFreeGuidance,
    Guided,
    Interval,
    Main,
    PowerWeight,
    WeightSchedule,
)
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers import DPMSolver2M, Heun, Sampler
from lightning_guide.seeds import SampleSeeds

Matrix = npt.NDArray[np.float64]
GOOD: Matrix = np.array([[2.0, 1.0], [1.0, 2.0]])
BAD: Matrix = np.array([[3.0, 0.6], [0.6, 2.2]])  # does not commute with GOOD
UNALIKE: Matrix = np.array([[2.6, 1.4], [1.4, 3.5]])


def model(covariance: Matrix) -> GaussianMixture:
    return gaussian([0.0, 0.0], torch.from_numpy(covariance))


def sampled(denoiser: Denoiser, sampler: Sampler) -> Matrix:
    """Covariance of the samples: the sampler is linear in x, so two rows of x give its matrix."""
    start = float(sampler.grid.sigmas()[0])
    x = torch.eye(2, dtype=torch.float64) * start
    *_, end = sampler.steps(denoiser, x, seeds=SampleSeeds(0, [0, 1]))
    result: Matrix = (end.x.T @ end.x).numpy()
    return result


def integrated(terms: list[tuple[float, Matrix]], start: float) -> Matrix:
    """Covariance at sigma = 0 of dx/ds = s sum_i c_i (V_i + s^2)^-1 x from N(0, start^2), by an adaptive integrator."""

    def slope(s: float, flat: Matrix) -> Matrix:
        generator = s * sum(c * np.linalg.inv(V + s**2 * np.eye(2)) for c, V in terms)
        product: Matrix = (generator @ flat.reshape(2, 2)).ravel()
        return product

    solution = scipy.integrate.solve_ivp(
        slope, (start, 0.0), start * np.eye(2).ravel(), "DOP853", rtol=1e-9, atol=1e-10
    )
    flow = solution.y[:, -1].reshape(2, 2)
    result: Matrix = flow @ flow.T
    return result


def test_the_mean_of_guiders_is_each_of_them_with_a_part_of_the_weight() -> None:
    good, *guiders = (model(covariance) for covariance in (GOOD, BAD, UNALIKE))
    x, sigma = torch.randn(5, 2, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)
    mean = (guiders[0](x, sigma) + guiders[1](x, sigma)) / 2
    several = Guided(guiders, [1 + (2.6 - 1) / 2] * 2, positive=good)
    torch.testing.assert_close(several(x, sigma), mean + 2.6 * (good(x, sigma) - mean))
    terms = [(1 + 0.8 + 0.3, GOOD), (-0.8, BAD), (-0.3, UNALIKE)]
    sampler = Heun(KarrasGrid(150, sigma_max=20.0))
    found = sampled(Guided(guiders, [1.8, 1.3], positive=good), sampler)
    assert off(found, integrated(terms, 20.0)) < 2e-3


def off(found: Matrix, expected: Matrix) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("weight", [0.5, 1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("kind", [Heun, DPMSolver2M])
def test_covariance_of_autoguided_samples(kind: type[Sampler], weight: float) -> None:
    guided = Autoguidance(model(BAD), weight, positive=model(GOOD))
    expected = integrated([(weight, GOOD), (1 - weight, BAD)], 80.0)
    assert off(sampled(guided, kind(KarrasGrid(200))), expected) < 5e-3
    if weight > 1:
        assert off(expected, GOOD) > 0.1, "the oracle would not notice"


def test_the_sampled_covariance_converges_to_the_oracle() -> None:
    guided = Autoguidance(model(BAD), 2.0, positive=model(GOOD))
    expected = integrated([(2.0, GOOD), (-1.0, BAD)], 80.0)
    errors = [off(sampled(guided, Heun(KarrasGrid(n, sigma_min=1e-3))), expected) for n in (50, 100, 200, 400)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 2e-4


def test_covariance_under_two_negatives() -> None:
    guided = Guided([model(BAD), model(UNALIKE)], [1.5, 1.75], positive=model(GOOD))
    expected = integrated([(2.25, GOOD), (-0.5, BAD), (-0.75, UNALIKE)], 80.0)
    assert off(sampled(guided, Heun(KarrasGrid(200))), expected) < 5e-3


@pytest.mark.parametrize("weight", [1.5, 2.0, 3.0])
def test_commuting_covariances_extrapolate_in_the_logarithm(weight: float) -> None:
    """V = V_good^w V_bad^(1 - w), the law of self-improving models."""
    rotation = np.array([[0.6, -0.8], [0.8, 0.6]])
    good, bad = np.array([2.0, 0.5]), np.array([1.6, 0.6])
    guided = Autoguidance(
        model(rotation @ np.diag(bad) @ rotation.T), weight, positive=model(rotation @ np.diag(good) @ rotation.T)
    )
    expected = rotation @ np.diag(good**weight * bad ** (1 - weight)) @ rotation.T
    found = sampled(guided, Heun(KarrasGrid(200, sigma_max=1000.0)))
    np.testing.assert_allclose(rotation.T @ found @ rotation, rotation.T @ expected @ rotation, rtol=5e-3, atol=1e-6)


def test_the_mean_is_extrapolated_too() -> None:
    good, bad = gaussian([1.0, 0.0], torch.from_numpy(GOOD)), gaussian([0.5, 0.2], torch.from_numpy(GOOD))
    sampler = Heun(KarrasGrid(200, sigma_max=1000.0))
    x = torch.zeros(1, 2, dtype=torch.float64)
    *_, end = sampler.steps(Autoguidance(bad, 3.0, positive=good), x, seeds=SampleSeeds(0, [0]))
    torch.testing.assert_close(end.x, torch.tensor([[2.0, -0.4]]).double(), rtol=2e-3, atol=2e-3)


# Identities of autoguidance and the blend


def labeled(spread: float) -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.2], [1.0, 0.5]])
    return GaussianMixture(means, spread * torch.eye(2).expand(2, 2, 2), labels=[0, 1])


LABELS = torch.arange(8) % 2


@pytest.mark.parametrize("weight", [0.0, 1.0, 1.7, 4.0])
@pytest.mark.parametrize("sigma", [0.1, 2.0])
def test_guidance_by_itself_is_the_model_to_the_bit(weight: float, sigma: float) -> None:
    x, level, good = torch.randn(8, 2), torch.tensor(sigma), labeled(0.2)
    assert torch.equal(Autoguidance(labeled(0.2), weight, positive=good)(x, level, LABELS), good(x, level, LABELS))


def test_both_models_receive_the_same_condition() -> None:
    x, level, good, bad = torch.randn(8, 2), torch.tensor(0.5), labeled(0.2), labeled(0.6)
    guided = Autoguidance(bad, 2.0, positive=good)(x, level, LABELS)
    torch.testing.assert_close(guided, 2 * good(x, level, LABELS) - bad(x, level, LABELS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("interval", [None, (0.1, 1.0)])
@pytest.mark.parametrize("sigma", [0.5, 3.0])
def test_blend_ends_at_classifier_free_guidance_and_autoguidance(
    interval: tuple[float, float] | None, sigma: float
) -> None:
    """To the bit, and the other guider is never called (an unresolved reference would raise)."""
    x, level, good, bad = torch.randn(8, 2), torch.tensor(sigma), labeled(0.2), labeled(0.6)
    cfg = AutoguidanceBlend(Main(), 2.3, alpha=0.0, interval=interval, positive=good)(x, level, LABELS)
    auto = AutoguidanceBlend(bad, 2.3, alpha=1.0, interval=interval, unconditional=Main(), positive=good)(
        x, level, LABELS
    )
    if interval is not None and sigma > interval[1]:
        assert torch.equal(cfg, good(x, level, LABELS)) and torch.equal(auto, cfg)
    else:
        assert torch.equal(cfg, ClassifierFreeGuidance(2.3, positive=good)(x, level, LABELS))
        assert torch.equal(auto, Autoguidance(bad, 2.3, positive=good)(x, level, LABELS))


@pytest.mark.parametrize("weight", [2.6, Interval(2.6, 0.2, 0.6), PowerWeight(4.2, sigma_max=1.0)])
@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
def test_blend_in_between(alpha: float, weight: float | WeightSchedule) -> None:
    """A number, and schedules that are 2.6 at this level."""
    x, level, good, bad = torch.randn(8, 2).double(), torch.tensor(0.5), labeled(0.2), labeled(0.6)
    blend = AutoguidanceBlend(bad, weight, alpha=alpha, positive=good)(x, level, LABELS)
    pos, uncond, worse = good(x, level, LABELS), good(x, level), bad(x, level, LABELS)
    w_u, w_c = (1 - alpha) * 1.6 + 1, alpha * 1.6 + 1
    torch.testing.assert_close(blend, pos + (w_u - 1) * (pos - uncond) + (w_c - 1) * (pos - worse))


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_blend_refuses_alpha(alpha: float) -> None:
    with pytest.raises(ValueError, match=f"alpha between 0 .CFG. and 1 .autoguidance., got {alpha}"):
        AutoguidanceBlend(Main(), alpha=alpha)
