"""Gradient guidance against closed forms of Gaussian data: support and exact conditional distribution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Prediction, Trajectory
from lightning_guide.distributions.gaussian_mixture import gaussian
from lightning_guide.distributions.subspace import Direction, SubspaceGaussian
from lightning_guide.guidance.gradient import (
    ConstantStrength,
    GradientGuidance,
    LookAhead,
    LookAheadWithoutJacobian,
    NaiveGradient,
    PaperStrength,
    PosteriorStrength,
    Strength,
    Tilt,
)
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers import DPMSolver2M, Heun
from lightning_guide.seeds import SampleSeeds

DOUBLE = torch.float64
LEVELS = [0.02, 0.3, 2.0, 50.0]
NOISE = 0.1


def general(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a mean (4,) and a covariance (4, 4) of rank 3 without symmetry."""
    root = torch.randn(4, 3, generator=generator, dtype=DOUBLE)
    return torch.randn(4, generator=generator, dtype=DOUBLE), root @ root.T


def posterior(mean: Tensor, covariance: Tensor, g: Tensor, y: float) -> Denoiser:
    """Return the exact denoiser of x_0 given g^T x_0 + NOISE e = y."""
    gain = covariance @ g / (NOISE**2 + g @ covariance @ g)
    return gaussian(mean + gain * (y - g @ mean), covariance - torch.outer(gain, covariance @ g))


def guided(guidance: GradientGuidance, x: Tensor, sigma: float, g: Tensor, y: float) -> Tensor:
    return guidance.toward(g[None], torch.tensor([y], dtype=DOUBLE))(x, torch.tensor(sigma, dtype=DOUBLE))


# --- closed forms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", LEVELS)
def test_look_ahead_stays_on_the_support_and_is_the_conditional_score(sigma: float, generator: torch.Generator) -> None:
    exact = SubspaceGaussian(64, 16)
    a, theta = exact.basis, 3.7 * Direction(64, 16).vector
    x = 5 * torch.randn(9, 64, generator=generator, dtype=DOUBLE)  # not on the support
    level = torch.tensor(sigma, dtype=DOUBLE)
    shift = guided(LookAhead(positive=exact), x, sigma, theta, 0.8) - exact(x, level)
    assert shift.norm(dim=1).min() > 1e-4
    assert float(((shift - shift @ a @ a.T).norm(dim=1) / shift.norm(dim=1)).max()) < 1e-6
    conditional = posterior(torch.zeros(64, dtype=DOUBLE), a @ a.T, theta, 0.8)
    torch.testing.assert_close(exact(x, level) + shift, conditional(x, level), rtol=1e-8, atol=1e-10)
    naive = guided(NaiveGradient(positive=exact), x, sigma, theta, 0.8) - exact(x, level)
    off = (naive - naive @ a @ a.T).norm(dim=1) / (naive @ a).norm(dim=1)
    torch.testing.assert_close(off, torch.full_like(off, 9.0))  # as theta itself


@pytest.mark.parametrize("sigma", LEVELS)
def test_posterior_strength_is_exact_for_any_gaussian(sigma: float, generator: torch.Generator) -> None:
    mean, covariance = general(generator)
    g = torch.randn(4, generator=generator, dtype=DOUBLE)
    x = mean + sigma * torch.randn(5, 4, generator=generator, dtype=DOUBLE)
    level, main = torch.tensor(sigma, dtype=DOUBLE), gaussian(mean, covariance)
    expected = posterior(mean, covariance, g, 1.3)(x, level)
    torch.testing.assert_close(
        guided(LookAhead(PosteriorStrength(), positive=main), x, sigma, g, 1.3), expected, rtol=1e-8, atol=1e-9
    )
    # the paper's b_t assumes a projected standard normal, which these data are not
    papers = guided(LookAhead(PaperStrength(), positive=main), x, sigma, g, 1.3)
    assert sigma != 2.0 or (papers - expected).abs().max() > 0.05


@pytest.mark.parametrize("sigma", LEVELS)
def test_guidance_matches_the_paper_in_variance_preserving_form(sigma: float, generator: torch.Generator) -> None:
    mean, covariance = general(generator)
    g, y = torch.randn(4, generator=generator, dtype=DOUBLE), -0.4
    x = torch.randn(6, 4, generator=generator, dtype=DOUBLE)
    alpha = (1 + sigma**2) ** -0.5
    h = 1 - alpha**2
    x_t = alpha * x
    inverse = torch.linalg.inv(alpha**2 * covariance + h * torch.eye(4, dtype=DOUBLE))
    score = -(x_t - alpha * mean) @ inverse
    v = (x_t + h * score) @ g / alpha
    jacobian = (g - h * inverse @ g) / alpha
    b = alpha**2 / 2 / (alpha**2 * NOISE**2 + h * jacobian.square().sum())
    look_ahead = 2 * b * (y - v)[:, None] * jacobian
    naive = alpha / (NOISE**2 + h * g.square().sum()) * (y - v)[:, None] * g
    main = gaussian(mean, covariance)
    for guidance, G in ((LookAhead(positive=main), look_ahead), (NaiveGradient(positive=main), naive)):
        expected = (x_t + h * (score + G)) / alpha  # Tweedie's estimate under the guided score
        torch.testing.assert_close(guided(guidance, x, sigma, g, y), expected, rtol=1e-7, atol=1e-8)


def test_samples_follow_the_posterior_and_the_tilted_distribution(generator: torch.Generator) -> None:
    mean, covariance = general(generator)
    g, main = torch.randn(4, generator=generator, dtype=DOUBLE), gaussian(mean, covariance)
    y = float(g @ mean) + 1
    gain = covariance @ g / (NOISE**2 + g @ covariance @ g)
    moments: list[tuple[Strength, Tensor, Tensor]] = [
        (PosteriorStrength(noise=NOISE), mean + gain, covariance - torch.outer(gain, covariance @ g)),
        (Tilt(0.7), mean + 0.7 * covariance @ g, covariance),
    ]
    count, sampler = 2000, DPMSolver2M(KarrasGrid(40, sigma_min=0.005, sigma_max=500.0))
    for strength, expected_mean, expected_covariance in moments:
        guidance = LookAhead(strength, positive=main).toward(g[None], torch.tensor([y]))
        x = sampler.sample(guidance, seeds=SampleSeeds(0, range(count))).x.double()
        scale = expected_covariance.diagonal().max().sqrt()
        torch.testing.assert_close(x.mean(0), expected_mean, rtol=0, atol=4 * float(scale) / count**0.5)
        torch.testing.assert_close(x.T.cov(), expected_covariance, rtol=0, atol=6 * float(scale) ** 2 / count**0.5)


# --- one backward pass, per sample ---------------------------------------------------------------------


class _Square(torch.autograd.Function):
    backwards = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2 / 4

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        _Square.backwards += 1
        return grads[0] * ctx.saved_tensors[0] / 2


class Curved(Denoiser):
    """D = x^2 / 4, counting its calls and backward passes; J = g x / 2."""

    data_shape, num_classes, sigma_data = (2, 3), 0, 0.5
    calls = 0

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        Curved.calls += 1
        return _Square.apply(x)


@pytest.mark.parametrize(("kind", "passes"), [(LookAhead, 1), (LookAheadWithoutJacobian, 0), (NaiveGradient, 0)])
def test_cost_and_independence_of_samples(
    kind: type[GradientGuidance], passes: int, generator: torch.Generator
) -> None:
    x = torch.randn(7, 2, 3, generator=generator)
    g, y = torch.randn(7, 2, 3, generator=generator), torch.randn(7, generator=generator)
    sigma, guidance = torch.tensor(0.8), kind(ConstantStrength(2.0), positive=Curved())
    Curved.calls = _Square.backwards = 0
    with torch.no_grad():
        together = guidance.toward(g, y)(x, sigma)
    assert (Curved.calls, _Square.backwards) == (1, passes) and not together.requires_grad
    alone = torch.cat([guidance.toward(g[i : i + 1], y[i : i + 1])(x[i : i + 1], sigma) for i in range(7)])
    torch.testing.assert_close(together, alone)
    jacobian = {LookAhead: g * x / 2, LookAheadWithoutJacobian: g, NaiveGradient: g / (1 + 0.8**2)}[kind]
    error = y - (g * x**2 / 4).sum((1, 2))
    torch.testing.assert_close(together, x**2 / 4 + 0.8**2 * 2.0 * error[:, None, None] * jacobian)
    assert guidance.gradient is None  # `toward` does not mutate
    assert torch.equal(guidance(x, sigma), x**2 / 4)  # no gradient, no guidance


def test_posterior_strength_stays_bounded_for_a_jacobian_of_no_posterior_mean() -> None:
    # g^T J = g^2 x / 2 is negative for x < 0; a real posterior mean has g^T J >= |J|^2
    x, g = torch.full((1, 2, 3), -0.5), torch.ones(1, 2, 3)
    guidance = LookAhead(PosteriorStrength(noise=0.1), positive=Curved()).toward(g, torch.tensor([2.0]))
    jacobian = g * x / 2
    strength = (2.0 - float((x**2 / 4).sum())) / (0.01 + 9.0 * float(jacobian.square().sum()))
    torch.testing.assert_close(guidance(x, torch.tensor(3.0)), x**2 / 4 + 9.0 * strength * jacobian)


def test_a_zero_gradient_does_not_change_the_prediction(generator: torch.Generator) -> None:
    x = torch.randn(4, 2, 3, generator=generator)
    for strength in (PaperStrength(), PosteriorStrength(), ConstantStrength(1.0), Tilt(1.0)):
        for kind in (LookAhead, LookAheadWithoutJacobian, NaiveGradient):
            guidance = kind(strength, cap=1.0, positive=Curved()).toward(torch.zeros(1, 2, 3), torch.ones(1))
            assert torch.equal(guidance(x, torch.tensor(0.5)), x**2 / 4)


def test_look_ahead_through_a_linear_decoder_equals_the_pulled_back_gradient(generator: torch.Generator) -> None:
    mean, covariance = general(generator)
    decoder = nn.Linear(4, 9).double()
    g, y = torch.randn(9, generator=generator, dtype=DOUBLE), 2.0
    x, main = torch.randn(5, 4, generator=generator, dtype=DOUBLE), gaussian(mean, covariance)
    decoded = guided(LookAhead(PosteriorStrength(), decoder=decoder, positive=main), x, 0.7, g, y)
    # W z + b with the gradient g is z itself with the gradient W^T g and a target that is smaller by g^T b
    pulled = (g @ decoder.weight).detach()
    target = y - float((g @ decoder.bias).detach())
    direct = guided(LookAhead(PosteriorStrength(), positive=main), x, 0.7, pulled, target)
    torch.testing.assert_close(decoded, direct)


# --- steps and cap -------------------------------------------------------------------------------------


def test_every_selects_steps_without_more_network_calls() -> None:
    guidance = LookAhead(Tilt(1.0), every=3, positive=Curved()).toward(torch.ones(1, 2, 3), torch.ones(1))
    x, sigma = torch.full((2, 2, 3), 0.5), torch.tensor(0.6)
    trajectory = Trajectory(x=x, seeds=SampleSeeds(0, range(2)), sigma=0.6, steps=7)
    predict, moved = guidance.start(trajectory), []
    for step in range(7):
        trajectory.step = step
        moved.append(bool((predict(x, sigma, None).clean != x**2 / 4).any()))
    assert moved == [True, False, False, True, False, False, True] and trajectory.evaluations == 7


def test_the_cap_bounds_the_change_of_the_noise(generator: torch.Generator) -> None:
    x = torch.randn(50, 2, 3, generator=generator)
    g, y, sigma = torch.randn(50, 2, 3, generator=generator), torch.randn(50, generator=generator), torch.tensor(0.9)
    free, capped = (
        LookAhead(ConstantStrength(1.0), cap=cap, positive=Curved()).toward(g, y)(x, sigma) - x**2 / 4
        for cap in (None, 0.3)
    )
    size = (free / sigma).flatten(1).square().mean(1).sqrt()  # of sigma G
    assert 5 < int((size > 0.3).sum()) < 45
    torch.testing.assert_close(capped, free * (0.3 / size).clamp(max=1)[:, None, None])


class OwnNoise(Curved):
    """Predicts a noise direction other than (x - D) / sigma."""

    def start(self, trajectory: Trajectory) -> Any:
        return lambda x, sigma, condition: Prediction(self(x, sigma), x * 3)


def test_an_explicit_noise_prediction_is_guided_as_well() -> None:
    guidance = LookAhead(Tilt(2.0), positive=OwnNoise()).toward(torch.ones(1, 2, 3), torch.ones(1))
    x = torch.full((1, 2, 3), 0.5)
    trajectory = Trajectory(x=x, seeds=SampleSeeds(0, [0]), sigma=0.5)
    prediction = guidance.start(trajectory)(x, torch.tensor(0.5), None)
    score = torch.full_like(x, 2.0 * 0.25)  # eta J
    torch.testing.assert_close(prediction.clean, x**2 / 4 + 0.25 * score)
    assert prediction.noise is not None
    torch.testing.assert_close(prediction.noise, 3 * x - 0.5 * score)


def test_fixed_gradient_and_target_work_in_a_second_order_sampler() -> None:
    exact = SubspaceGaussian(6, 2)
    theta = Direction(6, 2, off_ratio=1.0).vector
    sampler = Heun(KarrasGrid(40, sigma_min=0.02, sigma_max=500.0))
    seeds = range(256)
    fixed = LookAhead(gradient=theta.tolist(), target=2.0, positive=exact)
    x = sampler.sample(fixed, seeds=SampleSeeds(1, seeds)).x
    variance = float((exact.basis.T @ theta).square().sum())  # 1/2
    assert float((x @ theta.float()).mean()) == pytest.approx(2.0 * variance / (variance + NOISE**2), abs=0.02)
    assert isinstance(fixed.recipe["init_args"]["gradient"], list)


# --- errors --------------------------------------------------------------------------------------------


def test_invalid_arguments_are_refused() -> None:
    x, sigma = torch.ones(3, 2, 3), torch.tensor(0.5)
    for kind in (LookAhead, LookAheadWithoutJacobian, NaiveGradient):
        guidance = kind(positive=Curved())
        with pytest.raises(ValueError, match=r"gradient of the objective has shape \(5,\).*\(2, 3\)"):
            guidance.toward(torch.ones(1, 5), torch.ones(1))(x, sigma)
        with pytest.raises(ValueError, match="holds 2 gradients for a batch of 3"):
            guidance.toward(torch.ones(2, 2, 3), torch.ones(2))(x, sigma)
    with pytest.raises(ValueError, match=r"\(2,\) targets do not fit gradients of shape \(1, 2, 3\)"):
        guidance.toward(torch.ones(1, 2, 3), torch.ones(2))
    with pytest.raises(ValueError, match="not finite"):
        guidance.toward(torch.full((1, 2, 3), torch.nan), torch.ones(1))
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode=False"):
        LookAhead(positive=Curved()).toward(torch.ones(1, 2, 3), torch.ones(1))(x, sigma)
    for wrong in ({"every": 0}, {"cap": 0.0}):
        with pytest.raises(ValueError, match="every >= 1 and cap > 0"):
            LookAhead(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="both gradient and target"):
        LookAhead(target=1.0)
    for build in (lambda: PaperStrength(noise=0.0), lambda: ConstantStrength(-1.0), lambda: Tilt(float("inf"))):
        with pytest.raises(ValueError, match="> 0 and finite"):
            build()
