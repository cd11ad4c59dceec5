"""Training losses against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.network import Network
from lightning_guide.noise import LogNormal, LogUniform, UniformTime
from lightning_guide.noise_schedule import NoiseSchedule, UniformTimestep
from lightning_guide.preconditioning import EpsilonPrediction, Preconditioned, RectifiedFlow, VelocityPrediction
from lightning_guide.training.losses import (
    EDMLoss,
    EpsilonLoss,
    FlowMatchingLoss,
    ScoreMatchingLoss,
    TrainingLoss,
    Uncertainty,
    VelocityLoss,
)


class Zero(Network):
    """Network F = 0."""

    data_shape, num_classes = (8,), 3

    def embed(self, condition: Tensor | None, batch: int) -> None:
        self.condition = condition

    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        return torch.zeros_like(x)


class Shrink(Denoiser):
    """Denoiser D = a x with a learned a."""

    data_shape, num_classes, sigma_data = (1,), 0, 0.5

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.a * x


class Exact(nn.Module):
    """Distribution with the interface of `ScoreMatchingLoss`."""

    def __init__(self, model: GaussianMixture) -> None:
        super().__init__()
        self.model = model

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return self.model(x, sigma)


def quadrature(variance: float, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return nodes y ~ N(0, variance) and x = y + sigma n, `(N, 1)` each, and weights: exact for polynomials."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    y, n = np.meshgrid(math.sqrt(variance) * nodes, nodes, indexing="ij")
    w = np.outer(weights, weights) / (2 * math.pi)
    clean = torch.from_numpy(y.reshape(-1, 1))
    return clean, clean + sigma * torch.from_numpy(n.reshape(-1, 1)), torch.from_numpy(w.ravel())


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_untrained_error_is_one_at_every_level(sigma_data: float, generator: torch.Generator) -> None:
    clean = sigma_data * torch.randn(4000, 8, generator=generator)
    loss, denoiser = EDMLoss(uncertainty=False), Preconditioned(Zero(), sigma_data=sigma_data)
    for sigma in (0.002, 0.05, 0.5, 3.0, 80.0):
        noise = torch.randn(clean.shape, generator=generator)
        terms = loss.at(denoiser, clean, None, torch.full((4000,), sigma), noise)
        assert terms.error.shape == (4000,) and terms.objective is terms.error
        assert float(terms.error.mean()) == pytest.approx(1, abs=0.03)


def test_edm_loss_equals_its_formula() -> None:
    loss, sigma = EDMLoss(), torch.tensor([0.1, 2.0])
    denoised, clean = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    terms = loss.compare(denoised, clean, clean, sigma, 0.7)
    assert loss.uncertainty is not None
    for i, s in enumerate(sigma.tolist()):
        error = (s**2 + 0.49) / (s * 0.7) ** 2 * float(((denoised[i] - clean[i]) ** 2).mean())
        u = float(loss.uncertainty(sigma)[i].detach())
        assert float(terms.error[i]) == pytest.approx(error, rel=1e-5)
        assert float(terms.objective[i].detach()) == pytest.approx(error / math.exp(u) + u, rel=1e-5)


def test_uncertainty_is_optimal_at_the_error() -> None:
    """d/du (e exp(-u) + u) = 0 at exp(u) = e, with the optimum on neither side of it."""

    class Given(nn.Module):
        def __init__(self, u: Tensor) -> None:
            super().__init__()
            self.u = u

        def forward(self, sigma: Tensor) -> Tensor:
            return self.u

    loss, sigma = EDMLoss(), torch.full((3,), 0.5)
    clean, denoised = torch.zeros(3, 4), torch.tensor([0.3, 1.0, 2.0])[:, None].expand(3, 4)
    error = 8 * denoised[:, 0] ** 2
    for offset, sign in ((-0.1, -1), (0.0, 0), (0.1, 1)):
        u = (error.log() + offset).requires_grad_()
        loss.uncertainty = Given(u)  # type: ignore[assignment]
        (slope,) = torch.autograd.grad(loss.compare(denoised, clean, clean, sigma, 0.5).objective.sum(), u)
        assert torch.equal(torch.where(slope.abs() < 1e-5, 0, slope.sign()), torch.full((3,), float(sign)))


def test_uncertainty_learns_the_error_of_each_level() -> None:
    loss = EDMLoss()
    assert loss.uncertainty is not None
    sigma = torch.tensor([0.02, 0.3, 5.0])
    error = torch.tensor([0.9, 0.2, 0.5])
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(150):
        u = loss.uncertainty(sigma)
        (error / u.exp() + u).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.constrain()
    torch.testing.assert_close(loss.uncertainty(sigma).exp(), error, rtol=0.02, atol=0)
    assert float(loss.uncertainty.linear.weight.detach().square().mean()) == pytest.approx(1, abs=1e-3)


def test_uncertainty_depends_only_on_sigma() -> None:
    u = Uncertainty()(torch.tensor([0.1, 0.1, 7.0])).detach()
    assert u.shape == (3,)
    torch.testing.assert_close(u[0], u[1])
    assert abs(float(u[0] - u[2])) > 0.01


@pytest.mark.parametrize("a", [0.2, 0.9])
@pytest.mark.parametrize("sigma", [0.1, 1.0, 4.0])
def test_exact_and_denoising_targets_have_the_same_expected_gradient(a: float, sigma: float) -> None:
    """They differ by the constant Var(y | x) / s^2; the minimizer of both is the exact denoiser V / (V + s^2)."""
    variance = 0.6
    clean, x, weight = quadrature(variance, sigma)
    levels = torch.full((len(x),), sigma, dtype=torch.float64)
    results = []
    for loss in (ScoreMatchingLoss(), ScoreMatchingLoss(exact=Exact(gaussian([0.0], [[variance]])))):
        model = Shrink(a)
        value = (weight * loss.compare(model(x, levels), clean, x, levels, 0.5).objective).sum()
        results.append((float(value.detach()), float(torch.autograd.grad(value, model.a)[0])))
    (denoising, slope), (explicit, exact_slope) = results
    best = variance / (variance + sigma**2)
    assert slope == pytest.approx(exact_slope, rel=1e-10)
    assert slope == pytest.approx(2 * (a - best) * (variance + sigma**2) / sigma**2, rel=1e-10)
    assert explicit == pytest.approx((a - best) ** 2 * (variance + sigma**2) / sigma**2, rel=1e-9)
    assert denoising - explicit == pytest.approx(best, rel=1e-9)  # Var(y | x) / s^2 = V / (V + s^2)


def test_score_matching_is_the_weighted_score_error() -> None:
    """s^2 |score - target score|^2, averaged over the elements."""
    model, other = gaussian([0.1, 0.0], [[1.0, 0.2], [0.2, 0.5]]), gaussian([0.0, 0.3], [[0.7, 0.0], [0.0, 0.7]])
    x, sigma = torch.randn(6, 2, dtype=torch.float64), torch.rand(6, dtype=torch.float64) + 0.1
    terms = ScoreMatchingLoss(exact=Exact(other)).compare(model(x, sigma), torch.zeros_like(x), x, sigma, 0.5)
    expected = sigma**2 * (model.score(x, sigma) - other.score(x, sigma)).square().mean(1)
    torch.testing.assert_close(terms.objective, expected)
    assert terms.error is terms.objective and terms.sigma is sigma


def test_exact_needs_a_distribution() -> None:
    with pytest.raises(ValueError, match="distribution with denoise.*Linear has none"):
        ScoreMatchingLoss(exact=nn.Linear(1, 1))


@pytest.mark.parametrize("loss", [EDMLoss(LogUniform(0.1, 2.0)), ScoreMatchingLoss(LogUniform(0.1, 2.0))])
def test_all_draws_come_from_the_generator(loss: TrainingLoss) -> None:
    denoiser, clean = Preconditioned(Zero()), torch.randn(20, 8)

    def draw(seed: int) -> Tensor:
        terms = loss(denoiser, clean, None, torch.Generator().manual_seed(seed))
        assert 0.1 <= float(terms.sigma.min()) and float(terms.sigma.max()) <= 2.0 and terms.sigma.shape == (20,)
        return terms.objective

    first, state = draw(3), torch.get_rng_state()
    torch.manual_seed(12)
    assert torch.equal(first, draw(3)) and not torch.equal(first, draw(4))
    torch.manual_seed(0)
    torch.randn(20, 8)
    assert torch.equal(state, torch.get_rng_state())


def test_noise_and_levels_are_independent_and_standard(generator: torch.Generator) -> None:
    """With clean = 0 the error of D = 0 reveals the noise, of D = x its square."""
    clean = torch.zeros(5000, 1)
    loss = ScoreMatchingLoss(LogNormal(-0.5, 1.0))

    class Identity(Shrink):
        def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
            return x

    terms = loss(Identity(1.0), clean, None, generator)  # error = n^2
    assert float(terms.error.mean()) == pytest.approx(1, abs=0.07)
    assert float(terms.sigma.log().mean()) == pytest.approx(-0.5, abs=0.05)
    assert abs(float(torch.corrcoef(torch.stack([terms.error, terms.sigma.log()]))[0, 1])) < 0.05


def test_condition_reaches_the_denoiser(generator: torch.Generator) -> None:
    network, condition = Zero(), torch.tensor([0, 2, -1])
    EDMLoss()(Preconditioned(network), torch.randn(3, 8), condition, generator)
    assert network.condition is condition


PREDICTIONS = {
    # what the network predicts, from y, n and x = y + s n, and the loss of its error
    "noise": (lambda y, n, s: n, EpsilonLoss),
    "velocity": (lambda y, n, s: (n - s * y) / (1 + s**2) ** 0.5, VelocityLoss),
    "flow": (lambda y, n, s: n - y, FlowMatchingLoss),
}
FORMS = {
    "noise": EpsilonPrediction(NoiseSchedule()),
    "velocity": VelocityPrediction(NoiseSchedule()),
    "flow": RectifiedFlow(),
}


@pytest.mark.parametrize("sigma", [0.05, 0.7, 20.0])
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_error_of_a_prediction_is_a_weighted_error_of_the_denoiser(kind: str, sigma: float) -> None:
    """With F = 0 the error of the prediction is the mean square of its target."""
    target, loss = PREDICTIONS[kind]
    generator = torch.Generator().manual_seed(0)
    y, n = torch.randn(2, 4, 8, generator=generator, dtype=torch.float64)
    denoiser, s = Preconditioned(Zero(), FORMS[kind]), torch.full((4,), sigma, dtype=torch.float64)
    terms = loss().at(denoiser, y, None, s, n)
    torch.testing.assert_close(terms.objective, target(y, n, sigma).square().mean(1), rtol=1e-9, atol=0)


def test_min_snr_gives_noise_and_velocity_the_same_limited_weight() -> None:
    sigma = torch.tensor([0.1, 0.5, 3.0], dtype=torch.float64)
    for loss in (EpsilonLoss(min_snr=5.0), VelocityLoss(min_snr=5.0)):
        assert loss.weight(sigma).tolist() == pytest.approx([5.0, 4.0, 1 / 9])
    with pytest.raises(ValueError, match="min_snr must be positive"):
        EpsilonLoss(min_snr=0.0)


def test_default_levels_are_those_of_the_times_in_which_models_are_trained() -> None:
    generator = torch.Generator().manual_seed(0)
    flow = FlowMatchingLoss().noise.sample(100_000, generator)
    t = flow / (1 + flow)  # logit-normal(0, 1): ln(t / (1 - t)) is standard normal
    assert float(t.logit().mean()) == pytest.approx(0, abs=0.02) and float(t.logit().std()) == pytest.approx(
        1, abs=0.02
    )
    uniform = UniformTime(shift=3.0).sample(100_000, generator)
    t = uniform / (3 + uniform)
    assert float(t.mean()) == pytest.approx(0.5, abs=0.01) and float(t.var()) == pytest.approx(1 / 12, abs=0.002)
    schedule = NoiseSchedule()
    k = schedule.timestep(UniformTimestep(schedule).sample(100_000, generator))
    assert float(k.mean()) == pytest.approx(499.5, abs=4) and 0 <= float(k.min()) < float(k.max()) <= 999
