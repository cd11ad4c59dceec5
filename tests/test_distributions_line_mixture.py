"""Line mixtures against the generic mixture in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_guide.distributions import line_mixture
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.distributions.line_mixture import LineMixture

LEVELS = [0.0, 0.002, 0.01, 0.1, 1.0, 5.0, 80.0]


@pytest.fixture
def lines() -> LineMixture:
    """Three lines of five Gaussians: along the axis, oblique, and with a covariance that ignores its line."""
    return LineMixture(
        torch.tensor([[0.0, 0.0], [1.0, 0.5], [-0.5, -0.2]]),
        torch.tensor([[0.5, 0.0], [0.3, 0.4], [0.0, -0.2]]),
        torch.tensor([[[4e-3, 0.0], [0.0, 1e-3]], [[2e-3, 1e-3], [1e-3, 3e-3]], [[1e-2, -4e-3], [-4e-3, 2e-3]]]),
        torch.tensor([1.0, 2.0, 0.5]),
        torch.tensor([0.0, 0.1, 0.4, 0.7, 0.8]),
    )


def points(lines: LineMixture, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """Draw from the noised density at `sigma` (B,), float64."""
    x = lines.sample(len(sigma), generator)[0].double()
    return x + sigma[:, None] * torch.randn(x.shape, generator=generator, dtype=torch.float64)


def from_scratch(lines: LineMixture, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-density (B,), score (B, 2) and responsibilities (B, N), by the textbook, component by component."""
    J = len(lines.fractions)
    total, pull, joint = torch.zeros(len(x)).double(), torch.zeros(len(x), 2).double(), []
    for start, vector, covariance, weight in zip(
        lines.starts, lines.vectors, lines.covariances, lines.branch_weights, strict=True
    ):
        noised = covariance + sigma[:, None, None] ** 2 * torch.eye(2)
        branch = torch.zeros(len(x)).double()
        for fraction in lines.fractions:
            normal = torch.distributions.MultivariateNormal(start + fraction * vector, noised)
            density = weight / J * normal.log_prob(x).exp()
            branch += density
            pull -= density[:, None] * torch.linalg.solve(noised, x - start - fraction * vector)
        joint.append(branch)
        total += branch
    return total.log(), pull / total[:, None], torch.stack(joint, 1) / total[:, None]


def test_textbook_formulas(lines: LineMixture, generator: torch.Generator) -> None:
    sigma = torch.rand(50, generator=generator, dtype=torch.float64) * 0.5
    x = points(lines, sigma, generator)
    log_density, score, responsibilities = from_scratch(lines, x, sigma)
    torch.testing.assert_close(lines.log_density(x, sigma), log_density)
    torch.testing.assert_close(lines.score(x, sigma), score)
    torch.testing.assert_close(lines.responsibilities(x, sigma), responsibilities)
    torch.testing.assert_close(lines.denoise(x, sigma), x + sigma[:, None] ** 2 * score)
    assert torch.equal(lines(x, sigma, torch.full((50,), -1)), lines.denoise(x, sigma))


@pytest.mark.parametrize("level", LEVELS)
def test_double_precision_is_exact(lines: LineMixture, level: float, generator: torch.Generator) -> None:
    mixture, sigma = lines.as_mixture(), torch.full((200,), level, dtype=torch.float64)
    assert isinstance(mixture, GaussianMixture)
    x = points(lines, sigma, generator)
    x[:20] *= 30
    torch.testing.assert_close(lines.log_density(x, sigma), mixture.log_density(x, sigma), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(lines.score(x, sigma), mixture.score(x, sigma), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(lines.denoise(x, sigma), mixture(x, sigma), rtol=1e-10, atol=1e-10)


def test_score_is_the_gradient_of_the_log_density(lines: LineMixture, generator: torch.Generator) -> None:
    sigma = torch.rand(100, generator=generator, dtype=torch.float64)
    x, h = points(lines, sigma, generator), 1e-5
    for axis, step in enumerate(torch.eye(2, dtype=torch.float64) * h):
        slope = (lines.log_density(x + step, sigma) - lines.log_density(x - step, sigma)) / (2 * h)
        torch.testing.assert_close(slope, lines.score(x, sigma)[:, axis], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sigma_of_any_shape_and_batches_of_any_size(
    lines: LineMixture, dtype: torch.dtype, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = points(lines, torch.full((11,), 0.1), generator).to(dtype)
    whole = lines.score(x, torch.full((11,), 0.1))
    assert whole.dtype == dtype and whole.shape == (11, 2)
    for sigma in (0.1, torch.tensor(0.1), torch.full((11,), 0.1).double()):
        torch.testing.assert_close(lines.score(x, sigma), whole)
    assert lines.score(x[:0], 0.1).shape == (0, 2) and lines.log_density(x[:0], torch.ones(0)).shape == (0,)
    monkeypatch.setattr(line_mixture, "ELEMENTS_CPU", 4 * lines.branches)  # chunks of 4, 4 and 3 points
    sigma = torch.linspace(0, 1, 11)
    for method in (lines.score, lines.denoise, lines.responsibilities, lines.log_density):
        together, alone = method(x, sigma), [method(x[i : i + 1], sigma[i]) for i in range(11)]
        torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("distance", [10.0, 1e3, 1e6, 1e15])
@pytest.mark.parametrize("level", [0.0, 0.002, 1.0, 80.0])
def test_far_points_stay_finite(lines: LineMixture, distance: float, level: float) -> None:
    angle = torch.linspace(0.1, 2 * math.pi, 64)
    x, sigma = distance * torch.stack([angle.cos(), angle.sin()], 1), torch.tensor(level)
    for result in (lines.log_density(x, sigma), lines.score(x, sigma), lines.denoise(x, sigma)):
        assert result.isfinite().all()
    torch.testing.assert_close(lines.responsibilities(x, sigma).sum(1), torch.ones(64))
    exact = lines.as_mixture().score(x.double(), sigma.double())
    error = (lines.score(x, sigma) - exact).norm(dim=1) / exact.norm(dim=1)
    assert error.max() < 1e-3 and error.median() < 1e-6


def test_gradients_equal_those_of_the_generic_mixture(lines: LineMixture, generator: torch.Generator) -> None:
    x, sigma = points(lines, torch.full((7,), 0.3), generator), torch.full((7,), 0.3, dtype=torch.float64)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(lines.log_density(x, sigma).sum(), x)
    torch.testing.assert_close(slope, lines.score(x.detach(), sigma))
    jacobian = torch.autograd.functional.jacobian(lambda y: lines.denoise(y, sigma).sum(0), x.detach())
    h, plain = 1e-6, x.detach()
    for axis, step in enumerate(torch.eye(2, dtype=torch.float64) * h):
        change = (lines.denoise(plain + step, sigma) - lines.denoise(plain - step, sigma)) / (2 * h)
        torch.testing.assert_close(jacobian[:, :, axis].T, change, rtol=1e-5, atol=1e-7)
    assert not lines.score(plain, sigma).requires_grad
    with torch.no_grad():
        assert not lines.score(x, sigma).requires_grad


def test_samples_follow_the_weights_and_covariances(lines: LineMixture, generator: torch.Generator) -> None:
    x, component = lines.sample(200_000, generator)
    assert x.dtype == torch.float32 and component.max() == lines.components - 1 == 14
    share = torch.bincount(component).double() / len(x)
    torch.testing.assert_close(share, lines.branch_weights.repeat_interleave(5) / 5, rtol=0.0, atol=5e-3)
    for branch, place in ((0, 0), (1, 4), (2, 2)):
        own = x[component == 5 * branch + place].double()
        mean = lines.starts[branch] + lines.fractions[place] * lines.vectors[branch]
        torch.testing.assert_close(own.mean(0), mean, rtol=0.0, atol=4e-3)
        torch.testing.assert_close(own.T.cov(), lines.covariances[branch], rtol=0.06, atol=1e-4)


def test_sample_each_draws_one_point_per_generator(lines: LineMixture) -> None:
    x, component = lines.sample_each([torch.Generator().manual_seed(seed) for seed in range(20)])
    assert len(component.unique()) > 5
    for seed in range(20):
        point, of = lines.sample(1, torch.Generator().manual_seed(seed))
        assert torch.equal(x[seed], point[0]) and component[seed] == of


def test_state_dict_is_empty_and_inference_mode_works(lines: LineMixture) -> None:
    assert not lines.state_dict() and not list(lines.parameters())
    with torch.inference_mode():
        assert lines(torch.zeros(3, 2), torch.tensor(0.5)).shape == (3, 2)


def test_invalid_arguments_are_refused(lines: LineMixture) -> None:
    with pytest.raises(ValueError, match=r"shape \(B, 2\), got \(4, 3\)"):
        lines.score(torch.zeros(4, 3), 1.0)
    with pytest.raises(ValueError, match=r"sigma has the shape \(3,\); expected \(\) or \(4,\)"):
        lines.log_density(torch.zeros(4, 2), torch.ones(3))
    one, two = torch.ones(1), torch.ones(1, 2)
    with pytest.raises(ValueError, match="covariances"):
        LineMixture(two, two, torch.ones(1, 2), one, one)
    with pytest.raises(ValueError, match="positive definite"):
        LineMixture(two, two, -torch.eye(2)[None], one, one)
    with pytest.raises(ValueError, match="other than 0"):
        LineMixture(two, 0 * two, torch.eye(2)[None], one, one)
