"""Misfit, PSNR and RMSE of samples: their expected values in Gaussian posteriors, and what is not measured."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.distributions.gaussian_mixture import gaussian
from lightning_guide.evaluation.measurement_fit import MeasurementFit
from lightning_guide.guidance import DPS, MMPS, Autoguidance
from lightning_guide.objectives import Decoded, Masked, Matrix, Measurement
from lightning_guide.seeds import SampleSeeds

double = torch.float64
COUNT, NOISE = 3000, 0.3
ROOT, A, MEAN = (
    torch.randn(*s, dtype=double, generator=torch.Generator().manual_seed(3)) for s in ((4, 4), (3, 4), (4,))
)
COVARIANCE = ROOT @ ROOT.T / 4
GAIN = COVARIANCE @ A.T @ torch.linalg.inv(A @ COVARIANCE @ A.T + NOISE**2 * torch.eye(3))
POSTERIOR = COVARIANCE - GAIN @ A @ COVARIANCE


def draws(covariance: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(COUNT, 4, dtype=double, generator=generator) @ torch.linalg.cholesky(covariance).T


def fit(measurement: Measurement, x: Tensor, seeds: SampleSeeds) -> dict[str, float]:
    found = MeasurementFit([MMPS(measurement, positive=gaussian(MEAN, COVARIANCE))])
    for rows in torch.arange(len(x)).split(2000):
        part = type(seeds)(seeds.seed, [seeds.indices[i] for i in rows])
        found.add(Trajectory(x=x[rows], seeds=part, sigma=0.0), len(rows))
    return found.compute()


def test_samples_of_the_posterior_have_misfit_one_and_twice_the_error_of_its_mean() -> None:
    """Truth and sample are two draws given y: E |y - A x|^2 = m noise^2, E |x - t|^2 = 2 tr C."""
    seeds, truth = SampleSeeds(0, range(COUNT)), MEAN + draws(COVARIANCE, 0)
    measurement = Measurement(Matrix(A), truth, noise=NOISE)
    y = measurement.measurements(Trajectory(x=truth, seeds=SampleSeeds(0, range(COUNT)), sigma=0.0))
    x = MEAN + (y - A @ MEAN) @ GAIN.T + draws(POSTERIOR, 1)
    found = fit(measurement, x, seeds)
    assert found.keys() == {"misfit", "rmse"}
    assert found["misfit"] == pytest.approx(1, abs=0.03)  # standard error 0.007
    assert found["rmse"] == pytest.approx(float(2 * POSTERIOR.trace() / 4) ** 0.5, rel=0.05)


def test_misfit_to_one_measurement_is_that_of_the_mean_and_the_spread() -> None:
    y = torch.tensor([0.4, -0.2, 0.7], dtype=double)
    mean = MEAN + GAIN @ (y - A @ MEAN)
    expected = ((y - A @ mean).square().sum() + (A @ POSTERIOR @ A.T).trace()) / 3 / NOISE**2
    found = fit(
        Measurement(Matrix(A), observed=y, noise=NOISE), mean + draws(POSTERIOR, 1), SampleSeeds(0, range(COUNT))
    )
    assert found.keys() == {"misfit"}
    assert found["misfit"] == pytest.approx(float(expected) ** 0.5, abs=0.03)


def test_what_is_not_measured_counts_nothing_and_images_have_a_psnr() -> None:
    truth, operator = torch.rand(3, 1, 4, 4) * 2 - 1, Masked(0.4)
    kept = operator(torch.ones(1, 1, 4, 4))
    trajectory = Trajectory(x=truth + 0.1, seeds=SampleSeeds(0, range(3)), sigma=0.0)
    found = MeasurementFit([DPS(Measurement(operator, truth, noise=0.0), 1.0, positive=gaussian(MEAN, COVARIANCE))])
    found.add(trajectory, 2)
    error = ((truth + 0.1).clamp(-1, 1) - truth)[:2].flatten(1).square().mean(1)
    expected = {
        "residual": pytest.approx(0.1, rel=1e-4),
        "psnr": pytest.approx(float((10 * (4 / error).log10()).mean())),
    }
    assert found.compute() == expected
    shifted = Trajectory(x=truth + 0.1 + (1 - kept), seeds=SampleSeeds(0, range(3)), sigma=0.0)
    found.add(shifted, 3)
    assert found.compute()["residual"] == pytest.approx(0.1, rel=1e-4)


class Doubled(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_measurements_of_decoded_samples() -> None:
    energy = Decoded(Measurement(Matrix(A), observed=A @ (2 * MEAN), noise=0.1), Doubled())
    found = MeasurementFit([DPS(energy, 1.0, positive=gaussian(MEAN, COVARIANCE))])
    found.add(Trajectory(x=MEAN.expand(2, 4), seeds=SampleSeeds(0, range(2)), sigma=0.0), 2)
    assert found.compute() == {"misfit": pytest.approx(0, abs=1e-9)}


def test_a_measurement_that_is_started_twice_is_the_same() -> None:
    """A guided model that guides itself stays what it is."""
    guided = MMPS(Measurement(Matrix(A), MEAN, noise=NOISE), positive=gaussian(MEAN, COVARIANCE))
    x, sigma = MEAN + draws(COVARIANCE, 2)[:3], torch.tensor(1.0, dtype=double)
    found = Autoguidance(guided, 2.0, positive=guided)(x, sigma)
    torch.testing.assert_close(found, guided(x, sigma))
