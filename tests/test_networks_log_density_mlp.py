"""Log-density MLP: explicit score against autograd, symmetry of its Jacobian, gradients, recipe."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from lightning_guide.networks import LogDensityMLP, MPLinear
from lightning_guide.utils.recipe import build


def trained(**options: int) -> LogDensityMLP:
    """Return a network in float64 with a nonzero gain."""
    net = LogDensityMLP(**{"width": 12, **options}).double()
    with torch.no_grad():
        net.gain.fill_(0.4)
    return net


def points(n: int, generator: torch.Generator, dimensions: int = 2) -> tuple[Tensor, Tensor]:
    """Return points and noise levels from 0.01 to 10."""
    x = torch.randn(n, dimensions, generator=generator, dtype=torch.float64)
    return x, torch.logspace(-2, 1, n, dtype=torch.float64)


def score_by_autograd(net: LogDensityMLP, x: Tensor, sigma: Tensor) -> Tensor:
    """Return grad_x G, with a graph for the second pass."""
    x = x.detach().requires_grad_()
    (score,) = torch.autograd.grad(net.log_density(x, sigma).sum(), x, create_graph=True)
    return score


@pytest.mark.parametrize(("width", "parameters"), [(64, 16_641), (32, 4_225)])
def test_published_parameter_counts(width: int, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in LogDensityMLP(width=width).parameters()) == parameters


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_explicit_score_equals_the_gradient_of_the_log_density(
    layers: int, dimensions: int, generator: torch.Generator
) -> None:
    net = trained(layers=layers, dimensions=dimensions)
    x, sigma = points(20, generator, dimensions)
    torch.testing.assert_close(net.score(x, sigma), score_by_autograd(net, x, sigma), rtol=1e-10, atol=1e-10)
    one = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(net.score(x, one), score_by_autograd(net, x, one), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(net.score(x, one), net.score(x, one.expand(20)), rtol=1e-10, atol=1e-10)


def test_training_gradient_equals_that_of_double_backward(generator: torch.Generator) -> None:
    net = trained()
    x, sigma = points(32, generator)
    target = torch.randn(32, 2, generator=generator, dtype=torch.float64)

    def gradients(score: Tensor) -> list[Tensor]:
        loss = (sigma[:, None] ** 2 * (score - target) ** 2).mean()
        return list(torch.autograd.grad(loss, list(net.parameters())))

    by_hand, expected = gradients(net.score(x, sigma)), gradients(score_by_autograd(net, x, sigma))
    assert len(by_hand) == 6
    for ours, theirs in zip(by_hand, expected, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_score_is_differentiable_in_x_and_sigma(generator: torch.Generator) -> None:
    # Guidance by an energy backpropagates through D to x.
    net = trained(width=5, layers=2)
    x, sigma = points(4, generator)
    assert torch.autograd.gradcheck(net.score, (x.requires_grad_(), sigma.requires_grad_()))
    assert torch.autograd.gradcheck(net, (x, sigma))


def test_jacobian_of_the_score_is_symmetric(generator: torch.Generator) -> None:
    net = trained()
    x, _ = points(3, generator)
    sigma = torch.tensor(0.4, dtype=torch.float64)
    for point in x:
        jacobian = torch.autograd.functional.jacobian(lambda p: net.score(p[None], sigma)[0], point)
        assert isinstance(jacobian, Tensor)
        torch.testing.assert_close(jacobian, jacobian.mT, rtol=1e-9, atol=1e-9)


def test_log_density_equals_its_formula(generator: torch.Generator) -> None:
    net = trained(layers=2)
    x, sigma = points(6, generator)
    s = sigma[:, None]
    h = torch.cat([x / (s**2 + 0.25).sqrt(), s.log() / 4, torch.ones_like(s)], dim=1)
    for index, layer in enumerate([net.input, *net.layers]):
        assert isinstance(layer, MPLinear)
        rows = layer.weight / (1e-4 + layer.weight.square().mean(1, keepdim=True).sqrt())
        h = (h if index == 0 else h * torch.sigmoid(h) / 0.596) @ rows.mT / layer.weight.shape[1] ** 0.5
    expected = 0.4 * h.square().mean(1) / sigma - x.square().sum(1) / (2 * (sigma**2 + 0.25))
    torch.testing.assert_close(net.log_density(x, sigma), expected)


def test_denoiser_is_x_plus_sigma_squared_score(generator: torch.Generator) -> None:
    net = trained()
    x, sigma = points(16, generator)
    torch.testing.assert_close(net(x, sigma), x + sigma[:, None] ** 2 * net.score(x, sigma))
    label = torch.zeros(16, dtype=torch.int64)
    assert torch.equal(net(x, sigma, label), net(x, sigma))


def test_without_learned_part_it_is_the_denoiser_of_one_gaussian(generator: torch.Generator) -> None:
    net = LogDensityMLP(sigma_data=0.5)
    assert net.gain.item() < 0  # the learned log-density is -|h|^2 for every seed
    with torch.no_grad():
        net.gain.zero_()
    x = torch.randn(8, 2, generator=generator)
    sigma = torch.tensor(80.0)
    torch.testing.assert_close(net(x * sigma, sigma), x * sigma * 0.25 / (sigma**2 + 0.25))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_score_works_without_autograd(mode: type, generator: torch.Generator) -> None:
    net = trained()
    x, sigma = points(5, generator)
    expected = net(x, sigma).detach()
    with mode():
        answer = net(x, sigma)
    assert not answer.requires_grad
    torch.testing.assert_close(answer, expected, rtol=1e-12, atol=1e-12)


def test_computes_in_float32_under_autocast(generator: torch.Generator) -> None:
    net = trained().float()
    x, sigma = (tensor.float() for tensor in points(5, generator))
    expected = net(x, sigma)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net(x, sigma), expected)


def test_recipe_round_trip_and_constrain() -> None:
    net = LogDensityMLP(width=8, layers=2)
    twin = build(json.loads(json.dumps(net.recipe)))
    assert list(twin.state_dict()) == list(net.state_dict())
    with torch.no_grad():
        twin.input.weight.mul_(4)
    twin.constrain()
    torch.testing.assert_close(twin.input.weight.norm(dim=1), torch.full((8,), 2.0), rtol=0, atol=1e-3)


@pytest.mark.parametrize("option", ["width", "layers", "dimensions"])
def test_sizes_must_be_positive(option: str) -> None:
    with pytest.raises(ValueError, match=f"LogDensityMLP: {option} must be positive, got 0"):
        LogDensityMLP(**{option: 0})
