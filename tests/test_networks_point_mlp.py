"""MLP for points: formula, linear path, initial output of zero, recipe."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_guide.distributions.subspace import SubspaceGaussian
from lightning_guide.networks import PointMLP
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.utils.recipe import build


def test_output_equals_the_formula(generator: torch.Generator) -> None:
    net = PointMLP([5], width=8, layers=2, features=6, rank=3)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    x, c_noise = torch.randn(4, 5, generator=generator), torch.randn(4, generator=generator)
    e = net.fourier(c_noise)
    h = torch.cat([x, e], 1) @ net.input.weight.T + net.input.bias
    for layer in net.layers:
        h = h + F.silu(h) @ layer.weight.T + layer.bias
    expected = F.silu(h) @ net.output.weight.T + net.output.bias
    gate = e @ net.gate.weight.T + net.gate.bias
    expected = expected + (gate * (x @ net.down.weight.T)) @ net.up.weight.T + net.up.bias
    torch.testing.assert_close(net(x, c_noise, None), expected)


def test_linear_path_contains_the_exact_score_at_one_level(generator: torch.Generator) -> None:
    exact = SubspaceGaussian(6, 2)
    model = Preconditioned(PointMLP([6], width=8, layers=1, rank=6), sigma_data=exact.sigma_data)
    x, sigma = 30 * torch.randn(9, 6, generator=generator), torch.tensor(0.8)
    net, s_d = model.network, exact.sigma_data
    assert isinstance(net, PointMLP)
    torch.testing.assert_close(model(x, sigma), x * s_d**2 / (0.8**2 + s_d**2))  # both paths are initially zero
    # F = (D - c_skip x) / c_out is linear in c_in x: a A A^T + b (I - A A^T)
    c_in = (0.8**2 + s_d**2) ** -0.5
    c_skip, c_out = (s_d * c_in) ** 2, 0.8 * s_d * c_in
    on, off = (1 / (1 + 0.8**2) - c_skip) / (c_out * c_in), -c_skip / (c_out * c_in)
    projection = (exact.basis @ exact.basis.T).float()
    with torch.no_grad():
        net.down.weight.copy_(torch.eye(6))
        net.gate.weight.zero_()
        net.gate.bias.fill_(1.0)
        net.up.weight.copy_(on * projection + off * (torch.eye(6) - projection))
    torch.testing.assert_close(model(x, sigma), exact(x, sigma), rtol=1e-4, atol=1e-4)


def test_recipe_round_trip_and_invalid_arguments() -> None:
    net = PointMLP([4], width=8, rank=2)
    again = build(net.recipe)
    again.load_state_dict(net.state_dict())
    assert not hasattr(PointMLP([4]), "down")
    for wrong in ({"data_shape": [1, 8, 8]}, {"data_shape": [4], "width": 0}, {"data_shape": [4], "rank": -1}):
        with pytest.raises(ValueError, match="PointMLP needs data_shape"):
            PointMLP(**wrong)  # type: ignore[arg-type]
