"""The study of posterior methods: its closed form, and its scores of exact samples."""

from __future__ import annotations

import pytest
import torch

from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.objectives import Matrix
from scripts.lib.mixtures import given_measurement
from scripts.studies.posterior.mixtures import PROBLEMS, draw_case, score


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_posterior_is_prior_times_likelihood(name: str) -> None:
    case, zero = draw_case(name, 3), torch.zeros((), dtype=torch.float64)
    assert isinstance(case.prior, GaussianMixture) and isinstance(case.measurement.operator, Matrix)
    x = torch.randn(20, *case.prior.data_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    A, y, noise = case.measurement.operator.matrix, torch.as_tensor(case.measurement.observed), PROBLEMS[name][1]
    likelihood = -(y - x @ A.T).square().sum(1) / (2 * noise**2)
    gap = case.exact.log_density(x, zero) - case.prior.log_density(x, zero) - likelihood
    torch.testing.assert_close(gap, gap[:1].expand(20), rtol=1e-6, atol=1e-6)  # the constant ln p(y)
    blind = given_measurement(case.prior, A, y, 1e6)
    torch.testing.assert_close(blind.log_density(x, zero), case.prior.log_density(x, zero), rtol=1e-6, atol=1e-6)


def test_exact_samples_are_near_and_calibrated_and_others_are_not() -> None:
    case = draw_case("16 d, half", 0)
    draws = case.exact.sample(2000, torch.Generator().manual_seed(1))[0]
    exact, wide, lost = (score(case, x, 0) for x in (draws, 2 * draws, 1e4 * draws))
    assert exact["distance"] < 0.1 and exact["coverage"] == pytest.approx(0.9, abs=0.02) and exact["lost"] == 0
    assert wide["distance"] > 5 * exact["distance"] and lost["lost"] == 1
