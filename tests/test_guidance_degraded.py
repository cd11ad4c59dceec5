"""Synthetic degradations: dropout while sampling and extra input noise, with their exact effect on Gaussians."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance import Autoguidance
from lightning_guide.guidance.negatives import NoisyInput, SamplingDropout
from lightning_guide.guidance.perturbation import Perturbed
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers import Heun
from lightning_guide.seeds import SampleSeeds
from tests.small_networks import LABELS, NETWORKS, SIGMA, noisy_images, trajectory, transformer

VARIANCE, LEVEL = 0.6, torch.tensor(0.8, dtype=torch.float64)
EXACT = GaussianMixture(torch.zeros(1, 2), VARIANCE * torch.eye(2)[None])


def run(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(noisy_images(), SIGMA, LABELS)


# Dropout


@pytest.mark.parametrize("probability", [0.05, 0.5])
def test_dropout_is_drawn_for_each_sample_and_call(probability: float) -> None:
    module = SamplingDropout(probability).replace(nn.Dropout(0.3), trajectory(range(5)))
    streams = trajectory(range(5)).seeds
    x = torch.randn(5, 4, 7)
    results = []
    for training in (True, False, True):
        results.append(module.train(training)(x))
        kept = streams.uniform(f"dropout {probability}", (4, 7)) >= probability
        torch.testing.assert_close(results[-1], torch.where(kept, x / (1 - probability), 0.0))
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[1] == 0, results[2] == 0)


def test_dropout_zeroes_its_share_and_keeps_the_mean() -> None:
    module = SamplingDropout(0.1).replace(nn.Dropout(), trajectory())
    y = module(torch.ones(3, 20_000))
    assert float((y == 0).double().mean()) == pytest.approx(0.1, abs=0.006)  # standard deviation 0.0012
    assert float(y.mean()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("kind", NETWORKS)
def test_dropout_replaces_the_dropout_layers(kind: str) -> None:
    model = NETWORKS[kind](dropout=0.2)
    plain = run(model)
    degraded = Perturbed([SamplingDropout(0.1)], positive=model)
    before = torch.get_rng_state()
    first = run(degraded)
    assert not torch.allclose(first, plain)
    assert torch.equal(first, run(degraded)) and torch.equal(torch.get_rng_state(), before)
    assert torch.equal(run(Perturbed([SamplingDropout(0.0)], positive=model)), plain)
    tree = degraded.network(trajectory())
    assert not any(isinstance(module, nn.Dropout) and module.p == 0.2 for module in tree.modules())


# Input noise


def test_zero_noise_is_the_model_to_the_bit() -> None:
    x = torch.randn(4, 2)
    assert torch.equal(NoisyInput(0.0, positive=EXACT)(x, SIGMA), EXACT(x, SIGMA))


@pytest.mark.parametrize("amount", [0.1, 0.2, 1.0])
def test_it_is_the_posterior_mean_of_a_noisier_view(amount: float) -> None:
    """Data N(0, v): D = v / (v + s'^2) (x + noise), s' = (1 + a) s, with noise of variance s'^2 - s^2."""
    x = torch.randn(5, 2, dtype=torch.float64)
    place = trajectory(range(5))
    result = NoisyInput(amount, positive=EXACT).start(place)(x, LEVEL, None)
    n = trajectory(range(5)).seeds.normal(f"input noise {amount}", (2,)).double()
    level = (1 + amount) * float(LEVEL)
    noisier = x + math.sqrt(level**2 - float(LEVEL) ** 2) * n
    torch.testing.assert_close(result.clean, VARIANCE / (VARIANCE + level**2) * noisier)
    assert result.noise is None and place.evaluations == 1


def test_more_noise_is_a_larger_error() -> None:
    """E |x_0 - D|^2 is v s'^2 / (v + s'^2) for each axis: the least possible from the noisier view."""
    generator = torch.Generator().manual_seed(5)
    clean = math.sqrt(VARIANCE) * torch.randn(5000, 2, dtype=torch.float64, generator=generator)
    x = clean + LEVEL * torch.randn(clean.shape, dtype=torch.float64, generator=generator)
    errors = []
    for amount in (0.0, 0.1, 0.2, 0.5):
        error = (NoisyInput(amount, positive=EXACT)(x, LEVEL) - clean).square().mean()
        level = (1 + amount) * float(LEVEL)
        assert float(error) == pytest.approx(VARIANCE * level**2 / (VARIANCE + level**2), rel=0.04)
        errors.append(float(error))
    assert errors == sorted(errors)


def test_guidance_by_more_noise_undoes_the_degradation() -> None:
    """Means over n: 10 % guided by 20 % at w = 2 is nearer to the exact denoiser than 10 % alone; at w < 1 farther."""
    x = torch.tensor([[1.5, -0.7]], dtype=torch.float64).expand(5000, 2)
    exact = EXACT(x[:1], LEVEL)

    def off(weight: float) -> float:
        guided = Autoguidance(NoisyInput(0.2, positive=EXACT), weight, positive=NoisyInput(0.1, positive=EXACT))
        return float((guided(x, LEVEL).mean(0) - exact).norm() / exact.norm())

    alone, undone, worse = off(1.0), off(2.0), off(0.0)
    v, s = VARIANCE, float(LEVEL)
    gain = [v / (v + (1 + a) ** 2 * s**2) for a in (0.0, 0.1, 0.2)]
    for seen, weight in ((alone, 1), (undone, 2), (worse, 0)):
        assert seen == pytest.approx(abs(gain[2] + weight * (gain[1] - gain[2]) - gain[0]) / gain[0], abs=0.03)
    assert undone < alone / 2 < worse / 2


def test_degraded_branches_have_independent_streams() -> None:
    """The positive's noise does not depend on whether the negative is evaluated, and belongs to the sample."""
    model = transformer()
    sampler = Heun(KarrasGrid(3, sigma_min=0.1, sigma_max=5.0))

    def sample(weight: float, indices: list[int]) -> tuple[Tensor, int]:
        guided = Autoguidance(NoisyInput(0.2, positive=model), weight, positive=NoisyInput(0.1, positive=model))
        with torch.no_grad():
            place = sampler.sample(guided, seeds=SampleSeeds(0, indices), condition=torch.tensor(indices) % 4)
        return place.x, place.evaluations

    alone, calls = sample(1.0, [0, 1, 2])
    assert calls == 5
    with torch.no_grad():
        plain = sampler.sample(
            NoisyInput(0.1, positive=model), seeds=SampleSeeds(0, [0, 1, 2]), condition=torch.arange(3)
        )
    assert torch.equal(alone, plain.x)
    guided, calls = sample(2.0, [0, 1, 2])
    assert calls == 10 and not torch.allclose(guided, alone)
    torch.testing.assert_close(sample(2.0, [2])[0], guided[2:], rtol=1e-3, atol=1e-3)


def test_settings_out_of_range_are_refused() -> None:
    for probability in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"SamplingDropout needs a probability in \[0, 1\)"):
            SamplingDropout(probability)
    for amount in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="NoisyInput needs a finite amount >= 0"):
            NoisyInput(amount)
