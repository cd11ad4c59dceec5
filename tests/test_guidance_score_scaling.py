"""Naive truncation against its closed form."""

from __future__ import annotations

import pytest
import torch

from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.guidance import Interval, ScoreScaling
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers import Heun
from lightning_guide.seeds import SampleSeeds

MODEL = GaussianMixture([[-1.0, 0.2], [1.0, 0.5]], 0.3 * torch.eye(2).expand(2, 2, 2))


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.4, 3.0])
@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_score_is_multiplied(scale: float, sigma: float) -> None:
    x, level = 2 * torch.randn(9, 2).double(), torch.tensor(sigma, dtype=torch.float64)
    scaled = ScoreScaling(scale, positive=MODEL)(x, level)
    torch.testing.assert_close((scaled - x) / sigma**2, scale * MODEL.score(x, level), rtol=1e-9, atol=1e-9)


def test_scale_one_and_levels_outside_an_interval_are_the_model_to_the_bit() -> None:
    x, level = torch.randn(9, 2), torch.tensor(0.5)
    for scale in (1.0, Interval(1.4, 1.0, 2.0)):
        assert torch.equal(ScoreScaling(scale, positive=MODEL)(x, level), MODEL(x, level))


@pytest.mark.parametrize("scale", [0.8, 1.4])
def test_gaussian_samples_have_the_variance_of_the_scaled_flow(scale: float) -> None:
    """dx/ds = scale s x / (V + s^2), so the variance at 0 is s_0^2 (V / (V + s_0^2))^scale; one evaluation per call."""
    sampler, variance = Heun(KarrasGrid(200, sigma_max=5.0)), 0.7
    x = torch.full((1, 1), 5.0, dtype=torch.float64)
    guided = ScoreScaling(scale, positive=gaussian([0.0], [[variance]]))
    *_, end = sampler.steps(guided, x, seeds=SampleSeeds(0, [0]))
    assert float(end.x) ** 2 == pytest.approx(25 * (variance / (variance + 25)) ** scale, rel=2e-3)
    assert end.evaluations == 399


def test_any_data_shape_fits() -> None:
    class Models:
        main = MODEL

        def snapshot(self, **_: object) -> GaussianMixture:
            raise AssertionError

    resolved = ScoreScaling(1.4).resolve(Models())
    assert resolved.data_shape == (2,)
    assert torch.equal(
        resolved(torch.ones(1, 2), torch.tensor(1.0)),
        ScoreScaling(1.4, positive=MODEL)(torch.ones(1, 2), torch.tensor(1.0)),
    )
