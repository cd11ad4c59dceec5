"""Time-step guidance: the formula of the noise on the embedding, its schedule, its interval."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_guide.guidance.negatives.tsg import NoisyNoiseEmbedding, TimeStepGuidance
from lightning_guide.guidance.perturbation import Perturbed
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers import Euler, Heun
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.modules import replace_modules
from tests.small_networks import LABELS, NETWORKS, SIGMA, noisy_images, trajectory, transformer, unet


class Fixed(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, *_: Tensor) -> Tensor:
        return self.value


def run(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(noisy_images(), SIGMA, LABELS)


@pytest.mark.parametrize(("scale", "power"), [(2.0, 1.0), (1.0, 0.0), (3.0, 0.25)])
@pytest.mark.parametrize("step", [0, 1, 3])
def test_the_formula(scale: float, power: float, step: int) -> None:
    e = torch.randn(3, 7, dtype=torch.float64)
    place = trajectory(step=step, steps=4)
    n = trajectory().seeds.normal("noise embedding", (7,)).double()
    t = {0: 1.0, 1: 0.75, 3: 0.25}[step]
    deviation = (e - e.mean(1, keepdim=True)).square().mean(1, keepdim=True).sqrt()
    noisy = NoisyNoiseEmbedding(scale, power).replace(Fixed(e), place)(torch.zeros(3))
    torch.testing.assert_close(noisy, e + scale * t**power * deviation * n, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_network_receives_the_noisy_embedding(kind: str) -> None:
    model = NETWORKS[kind]()
    with torch.no_grad():
        e = model.network.embedding_noise(torch.full((3,), float(SIGMA.log() / 4)))  # type: ignore[operator]
        noisy = NoisyNoiseEmbedding().replace(Fixed(e), trajectory())(torch.zeros(3))
    expected = run(replace_modules(model, {"network.embedding_noise": Fixed(noisy)}))
    negative = Perturbed([NoisyNoiseEmbedding()], positive=model).network(trajectory())
    torch.testing.assert_close(run(negative), expected)
    assert not torch.allclose(expected, run(model))
    assert not torch.equal(run(negative), expected)  # the noise of the next call is another


@pytest.mark.parametrize("kind", NETWORKS)
def test_zero_noise_is_the_model(kind: str) -> None:
    model = NETWORKS[kind]()
    assert torch.equal(run(Perturbed([NoisyNoiseEmbedding(0.0)], positive=model)), run(model))
    module = nn.Identity()
    assert NoisyNoiseEmbedding(0.0).replace(module, trajectory()) is module


def test_the_interval_is_in_the_remaining_part_of_the_trajectory() -> None:
    model = transformer(depth=2)
    for interval, guided in (((0.0, 1.0), 10), ((0.2, 0.8), 6), ((0.0, 0.1), 1)):
        guidance = TimeStepGuidance(2.0, interval=interval, positive=model)
        for sampler, plain, twice in ((Euler(KarrasGrid(10)), 10, guided), (Heun(KarrasGrid(10)), 19, 2 * guided)):
            with torch.no_grad():
                place = sampler.sample(guidance, seeds=SampleSeeds(0, [0]), condition=LABELS[:1])
            last = sampler.__class__ is Heun and interval[0] == 0  # whose single evaluation is guided, too
            assert place.evaluations == plain + twice - last, (interval, sampler)


def test_settings_out_of_range_are_refused() -> None:
    for scale, power in ((-1.0, 1.0), (1.0, -1.0), (float("inf"), 1.0), (1.0, float("nan"))):
        with pytest.raises(ValueError, match="TSG needs finite scale >= 0 and power >= 0"):
            NoisyNoiseEmbedding(scale, power)
    with pytest.raises(ValueError, match="a window of steps needs"):
        TimeStepGuidance(interval=(0.8, 0.2))


def test_a_layer_that_is_not_an_embedding_is_refused() -> None:
    with pytest.raises(ValueError, match="a layer of one input that returns .*; EDM2Block is not one"):
        TimeStepGuidance(layers=["encoder.4x4_block0"], positive=unet())(noisy_images(), SIGMA, LABELS)
