"""Exact mixtures against numerical integration, automatic differentiation and torch's own distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, distributions

from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian

double = torch.float64
MEANS = torch.tensor([[-1.0, 0.2], [1.0, 0.5], [0.1, -1.0], [0.3, 0.3]], dtype=double)
FACTORS = torch.tensor([[[0.5, 0], [0.3, 0.1]], [[0.2, 0], [0, 0.2]], [[0.4, 0], [-0.3, 0.3]], [[1, 0], [0.5, 1]]]).to(
    double
)
COVARIANCES = FACTORS @ FACTORS.mT
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=double)


def mixture(labels: list[int] | None = None) -> GaussianMixture:
    """Return a mixture of four anisotropic components in the plane."""
    return GaussianMixture(MEANS, COVARIANCES, WEIGHTS, labels=labels)


def points(count: int) -> Tensor:
    return 2 * torch.randn(count, 2, dtype=double)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 4.0])
def test_denoiser_is_the_posterior_mean_by_numerical_integration(sigma: float) -> None:
    means, deviations, weights = [-1.0, 0.4, 1.5], [0.3, 0.1, 0.6], [0.2, 0.5, 0.3]
    one = GaussianMixture([[m] for m in means], [[[s**2]] for s in deviations], weights)
    clean = torch.linspace(-8, 8, 40001, dtype=double)
    prior = sum(
        w / s * torch.exp(-(((clean - m) / s) ** 2) / 2) for w, m, s in zip(weights, means, deviations, strict=True)
    )
    x = torch.tensor([-2.0, -0.3, 0.0, 0.7, 2.5], dtype=double)
    posterior = prior * torch.exp(-(((x[:, None] - clean) / sigma) ** 2) / 2)
    expected = (posterior * clean).sum(1) / posterior.sum(1)
    torch.testing.assert_close(one(x[:, None], torch.tensor(sigma))[:, 0], expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sigma", [0.01, 0.3, 5.0])
def test_log_density_against_torch_distributions(sigma: float) -> None:
    components = distributions.MultivariateNormal(MEANS, COVARIANCES + sigma**2 * torch.eye(2, dtype=double))
    reference = distributions.MixtureSameFamily(distributions.Categorical(WEIGHTS), components)
    x = points(50)
    torch.testing.assert_close(mixture().log_density(x, torch.tensor(sigma)), reference.log_prob(x))


def test_log_density_does_not_underflow() -> None:
    far = mixture().log_density(torch.full((1, 2), 1e4), torch.tensor(0.1))
    assert math.isfinite(float(far)) and float(far) < -1e6


@pytest.mark.parametrize("labels", [None, [0, 0, 1, 1]])
def test_score_is_the_gradient_of_the_log_density_and_denoiser_follows(labels: list[int] | None) -> None:
    model = mixture(labels)
    x, sigma = points(40).requires_grad_(), torch.rand(40, dtype=double) * 3 + 0.01
    condition = None if labels is None else torch.arange(40) % 3 - 1
    (gradient,) = torch.autograd.grad(model.log_density(x, sigma, condition).sum(), x)
    torch.testing.assert_close(model.score(x, sigma, condition), gradient, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(model(x, sigma, condition), x + sigma[:, None] ** 2 * gradient, rtol=1e-7, atol=1e-7)


def test_scalar_sigma_equals_sigma_per_sample() -> None:
    x = points(5)
    assert torch.equal(mixture()(x, torch.tensor(0.3)), mixture()(x, torch.full((5,), 0.3)))


def test_condition_restricts_to_the_components_of_the_class() -> None:
    model, x, sigma = mixture([0, 2, 0, 1]), points(8), torch.tensor(0.8)
    assert model.num_classes == 3
    for label, members in {0: [0, 2], 1: [3], 2: [1], -1: [0, 1, 2, 3]}.items():
        part = GaussianMixture(MEANS[members], COVARIANCES[members], WEIGHTS[members])
        condition = torch.full((8,), label)
        torch.testing.assert_close(model(x, sigma, condition), part(x, sigma))
        shift = model.log_density(x, sigma, condition) - part.log_density(x, sigma)
        torch.testing.assert_close(shift, (WEIGHTS[members].sum() / WEIGHTS.sum()).log().expand(8))
    assert torch.equal(model(x, sigma), model(x, sigma, torch.full((8,), -1)))
    mixed = torch.tensor([0, 1, 2, -1, 0, 1, 2, -1])
    for i in range(8):
        torch.testing.assert_close(model(x, sigma, mixed)[i], model(x[[i]], sigma, mixed[[i]])[0])
    assert mixture().num_classes == 0
    assert torch.equal(mixture()(x, sigma, mixed), mixture()(x, sigma)), "without classes labels are not read"


@pytest.mark.parametrize("label", [1, 3, 100])
def test_label_without_component_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=rf"label {label} has no component .*; expected one of \[0, 2\], or -1"):
        mixture([0, 2, 0, 2])(points(2), torch.tensor(1.0), torch.tensor([0, label]))


def test_gaussian_denoiser_is_linear() -> None:
    mean, covariance, sigma = MEANS[0], COVARIANCES[2], 0.7
    x = points(6)
    gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(2, dtype=double))
    torch.testing.assert_close(gaussian(mean, covariance)(x, torch.tensor(sigma)), mean + (x - mean) @ gain.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_covariance(dtype: torch.dtype) -> None:
    """Data on the line t (3, 4) / 5: the denoiser projects onto the line and shrinks along it."""
    direction = torch.tensor([0.6, 0.8], dtype=dtype)
    model = GaussianMixture(torch.zeros(1, 2), torch.outer(direction, direction)[None])
    x, sigma = points(20).to(dtype), torch.tensor(0.3, dtype=dtype)
    along = x @ direction / (1 + 0.3**2)
    torch.testing.assert_close(model(x, sigma), along[:, None] * direction, rtol=1e-5, atol=1e-6)
    samples, _ = model.sample(100, torch.Generator().manual_seed(0))
    assert float((samples[:, 0] * 4 - samples[:, 1] * 3).abs().max()) < 1e-2 * float(samples.std())
    high = torch.randn(30, 3)
    GaussianMixture(torch.zeros(1, 30), (100 * high @ high.T)[None])  # rank 3, rounded to float32: accepted


@pytest.mark.parametrize("sigma", [80.0, 1e3, 1e5])
def test_large_sigma_in_float32(sigma: float) -> None:
    x = sigma * torch.randn(100, 2)
    exact = mixture()(x.double(), torch.tensor(sigma, dtype=double))
    single = mixture()(x, torch.tensor(sigma))
    assert single.dtype == torch.float32
    assert float((single - exact).abs().max()) < 1e-5
    naive = x + sigma**2 * mixture().score(x, torch.tensor(sigma))
    assert float((naive - exact).abs().max()) > 1e-5  # the reason for not computing the denoiser from the score


def test_tiny_sigma_returns_x() -> None:
    x = mixture().sample(50, torch.Generator().manual_seed(0))[0]
    torch.testing.assert_close(mixture()(x, torch.tensor(1e-4)), x, rtol=0, atol=1e-5)


def test_samples_follow_the_mixture(generator: torch.Generator) -> None:
    x, component = mixture().sample(20000, generator)
    assert x.shape == (20000, 2) and x.dtype == torch.float32
    shares = torch.bincount(component) / 20000
    torch.testing.assert_close(shares.double(), WEIGHTS / WEIGHTS.sum(), rtol=0, atol=0.015)
    for k in range(4):
        part = x[component == k].double()
        spread = float(COVARIANCES[k].diagonal().max())
        torch.testing.assert_close(part.mean(0), MEANS[k], rtol=0, atol=0.1 * math.sqrt(spread))
        torch.testing.assert_close(part.T.cov(), COVARIANCES[k], rtol=0, atol=0.12 * spread)
    again = mixture().sample(20000, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], x) and torch.equal(again[1], component)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"covariances": [[[1.0]]]}, r"means \(K, d\).*got \(2, 1\), \(1, 1, 1\) and \(2,\)"),
        ({"means": [0.0, 1.0]}, r"got \(2,\)"),
        ({"weights": [1.0, 1.0, 1.0]}, r"and \(3,\)"),
        ({"weights": [1.0, -0.5]}, "must be >= 0 with a positive sum"),
        ({"weights": [0.0, 0.0]}, "must be >= 0 with a positive sum"),
        ({"covariances": [[[1.0]], [[-0.5]]]}, "negative eigenvalue -0.5"),
        ({"means": [[0.0, 0.0]], "covariances": [[[1.0, 0.5], [0.0, 1.0]]]}, "must be symmetric"),
        ({"labels": [0, 1, 2]}, "2 components needs as many labels, got 3"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, list[float]], message: str) -> None:
    valid = {"means": [[0.0], [1.0]], "covariances": [[[1.0]], [[1.0]]]}
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**(valid | arguments))  # type: ignore[arg-type]
