"""Denoisers: preconditioning against its formulas, predictions, the count of network calls."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Prediction, Trajectory, expand
from lightning_guide.network import Network
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.seeds import SampleSeeds


class Probe(Network):
    """Returns `answer` for any input and records its inputs."""

    def __init__(self, answer: Tensor | None = None) -> None:
        super().__init__()
        self.data_shape, self.num_classes, self.answer, self.constrained = (2, 3), 4, answer, 0

    def embed(self, condition: Tensor | None, batch: int) -> Tensor:
        self.condition, self.batch = condition, batch
        return torch.full((batch, 1), 7.0)

    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        self.x, self.c_noise, self.embedding = x, c_noise, embedding
        return torch.zeros_like(x) if self.answer is None else self.answer.to(torch.bfloat16)

    def constrain(self) -> None:
        self.constrained += 1


SIGMAS = [1e-4, 0.002, 0.1, 0.5, 3.0, 80.0, 1e4]


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_preconditioning_follows_its_formulas(sigma_data: float) -> None:
    answer = torch.randn(len(SIGMAS), 2, 3).to(torch.bfloat16).float()
    network = Probe(answer)
    x = torch.randn(len(SIGMAS), 2, 3)
    labels = torch.tensor([0, 1, 2, 3, -1, 0, 1])
    D = Preconditioned(network, sigma_data=sigma_data)(x, torch.tensor(SIGMAS), labels)
    assert D.dtype == torch.float32
    for i, s in enumerate(SIGMAS):
        total = s**2 + sigma_data**2
        expected = sigma_data**2 / total * x[i] + s * sigma_data / math.sqrt(total) * answer[i]
        torch.testing.assert_close(D[i], expected, rtol=2e-6, atol=1e-6 * sigma_data)
        torch.testing.assert_close(network.x[i], x[i] / math.sqrt(total), rtol=2e-6, atol=0)
        assert float(network.c_noise[i]) == pytest.approx(math.log(s) / 4, rel=1e-6)
    assert network.condition is labels and network.batch == len(x) and bool((network.embedding == 7).all())


def test_zero_network_gives_c_skip_x() -> None:
    x, sigma = torch.randn(3, 2, 3), torch.tensor([0.01, 0.5, 20.0])
    D = Preconditioned(Probe())(x, sigma)
    torch.testing.assert_close(D, 0.25 / (sigma**2 + 0.25)[:, None, None] * x)
    torch.testing.assert_close(Preconditioned(Probe())(x, torch.tensor(0.5)), x / 2)


def test_input_and_target_of_the_network_have_unit_variance(generator: torch.Generator) -> None:
    """At every noise level the input and the target of F have variance 1."""
    for sigma in (0.01, 0.3, 0.5, 2.0, 50.0):
        clean = 0.5 * torch.randn(20000, 2, 3, generator=generator)
        x = clean + sigma * torch.randn(20000, 2, 3, generator=generator)
        network = Probe()
        skip = Preconditioned(network)(x, torch.tensor(sigma))
        c_out = sigma * 0.5 / math.sqrt(sigma**2 + 0.25)
        assert float(network.x.std()) == pytest.approx(1, abs=0.01)
        assert float(((clean - skip) / c_out).std()) == pytest.approx(1, abs=0.01)


def test_scalar_sigma_equals_sigma_per_sample() -> None:
    network, x = Probe(torch.randn(4, 2, 3)), torch.randn(4, 2, 3)
    denoiser = Preconditioned(network)
    together = denoiser(x, torch.tensor(0.7, dtype=torch.float64))
    assert network.c_noise.shape == (4,)
    assert torch.equal(together, denoiser(x, torch.full((4,), 0.7)))


@pytest.mark.parametrize("shape", [(5, 2), (5, 3, 2), (5, 2, 3, 1), (5,)])
def test_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        Preconditioned(Probe())(torch.zeros(shape), torch.tensor(1.0))
    assert str(caught.value) == f"x has shape {shape[1:]} without the batch; expected (2, 3)"


def test_attributes_come_from_the_network() -> None:
    network = Probe()
    denoiser = Preconditioned(network, sigma_data=0.3)
    assert (denoiser.data_shape, denoiser.num_classes, denoiser.sigma_data) == ((2, 3), 4, 0.3)
    denoiser.constrain()
    assert network.constrained == 1
    with pytest.raises(ValueError, match="sigma_data must be positive, got 0"):
        Preconditioned(network, sigma_data=0)


def test_start_counts_calls_and_predicts_no_separate_noise() -> None:
    denoiser = Preconditioned(Probe())
    trajectory = Trajectory(x=torch.zeros(1, 2, 3), seeds=SampleSeeds(0, [0]), sigma=1.0)
    predict, x, sigma = denoiser.start(trajectory), torch.randn(1, 2, 3), torch.tensor(0.4)
    for count in (1, 2, 3):
        prediction = predict(x, sigma, None)
        assert trajectory.evaluations == count
    assert prediction.noise is None and torch.equal(prediction.clean, denoiser(x, sigma))


def test_predictions_point_from_clean_along_noise() -> None:
    x, clean, noise = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    sigma, other = torch.tensor(2.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    plain, separate = Prediction(clean), Prediction(clean, noise)
    torch.testing.assert_close(plain.direction(x, sigma), (x - clean) / 2)
    torch.testing.assert_close(plain.direction(x, sigma.expand(4)), (x - clean) / 2)
    torch.testing.assert_close(plain.step(x, sigma, other), clean + 0.5 * (x - clean) / 2)
    assert separate.direction(x, sigma) is noise
    torch.testing.assert_close(separate.step(x, sigma, other), clean + 0.5 * noise)
    for prediction in (plain, separate):
        assert torch.equal(prediction.step(x, sigma, torch.zeros_like(sigma)), clean)


def test_expand() -> None:
    x = torch.zeros(3, 4, 5)
    assert expand(torch.ones(3), x).shape == (3, 1, 1) and expand(torch.tensor(1.0), x).shape == ()
