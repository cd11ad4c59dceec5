"""Division by the RMS: derivatives of first and second order, dtypes, memory layouts, number of kernels."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from lightning_guide.networks import EDM2UNet, MPConv, MPLinear
from lightning_guide.networks.edm2_block import EDM2Block
from lightning_guide.networks.rms_norm import EPSILON, normalize
from lightning_guide.optimization.low_rank_layers import adapt
from scripts.lib.emulated_device import DEVICE, EmulatedDevice


def plain_matrix(layer: MPConv | MPLinear, weight: Tensor) -> Tensor:
    """The matrix of a layer by its formula, with the derivative of automatic differentiation."""
    rms = weight.flatten(1).square().mean(1).sqrt().reshape(-1, *[1] * (weight.ndim - 1))
    gain = 1.0 if layer.gain is None else layer.gain
    return weight / (EPSILON + rms) * (layer.scale * gain / math.sqrt(weight[0].numel()))


@pytest.mark.parametrize("dim", [None, 1, (1, 2), -1])
def test_derivatives_of_first_and_second_order(dim: int | tuple[int, ...] | None, generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: normalize(x, dim), x)
    assert gradgradcheck(lambda x: normalize(x, dim), x)


@pytest.mark.parametrize("gain", [False, True])
def test_matrix_and_gradients_equal_those_of_the_formula(gain: bool) -> None:
    torch.manual_seed(3)
    layer = MPConv(5, 7, kernel=3, learned_gain=gain, scale=0.7)
    with torch.no_grad():
        layer.weight.mul_(0.8)  # an average lies inside of the sphere
        if layer.gain is not None:
            layer.gain.fill_(0.3)
    weights = torch.randn(7, 5, 3, 3)
    found, expected = layer.effective_weight(), plain_matrix(layer, layer.weight)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    parameters = list(layer.parameters())
    gradients = [torch.autograd.grad((matrix.sin() * weights).sum(), parameters) for matrix in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).norm() < 2e-6 * theirs.norm()


def test_second_derivatives_of_a_matrix() -> None:
    layer = MPLinear(4, 3, learned_gain=True, scale=2.0).double()
    assert layer.gain is not None
    layer.gain.data.fill_(0.5)

    def matrix(weight: Tensor, gain: Tensor) -> Tensor:
        return torch.func.functional_call(Matrix(layer), {"layer.weight": weight, "layer.gain": gain}, ())

    assert gradgradcheck(matrix, (layer.weight, layer.gain))


class Matrix(nn.Module):
    """The matrix of a layer as a result."""

    def __init__(self, layer: MPLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Tensor:
        """Return it."""
        return self.layer.effective_weight()


def test_zero_row_has_a_finite_gradient() -> None:
    layer = MPLinear(4, 2)
    with torch.no_grad():
        layer.weight[0] = 0
    layer(torch.ones(1, 4)).sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad[0], torch.full((4,), 1 / (EPSILON * 2)))
    assert layer.weight.grad.isfinite().all()


def test_layer_multiplies_in_the_dtype_of_autocast_and_its_gradients_stay_wide(generator: torch.Generator) -> None:
    layer = MPConv(4, 8, kernel=3)
    x = torch.randn(2, 4, 6, 6, generator=generator)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.02, atol=0.02)
    y.float().square().sum().backward()
    rough = layer.weight.grad
    (fine,) = torch.autograd.grad(exact.square().sum(), layer.weight)
    assert rough is not None and rough.dtype == torch.float32
    assert (rough - fine).norm() < 0.02 * fine.norm()
    radial = (rough * layer.weight).flatten(1).sum(1).abs()
    assert (radial < 1e-3 * layer.weight.flatten(1).norm(dim=1) * rough.flatten(1).norm(dim=1)).all()


def test_wide_numbers_stay_wide_under_autocast() -> None:
    layer = MPLinear(4, 2).double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.effective_weight(torch.float64).dtype == torch.float64
        assert normalize(torch.ones(1, 4, dtype=torch.float64)).dtype == torch.float64


def test_result_has_the_layout_that_was_asked_for(generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 4, generator=generator).permute(2, 0, 1)
    y = normalize(x, dim=-1, layout=torch.contiguous_format)
    assert y.is_contiguous() and not x.is_contiguous()
    torch.testing.assert_close(y, normalize(x.contiguous(), dim=-1))


def test_low_rank_addition_learns_through_the_norm() -> None:
    torch.manual_seed(0)
    layer, x = MPLinear(6, 5), torch.randn(3, 6)
    assert adapt(layer, 2, 1.0, 0)
    layer.parametrizations.weight[0].up.data.normal_()  # type: ignore[index, union-attr]
    parameters = list(layer.parameters())
    expected = torch.autograd.grad((x @ plain_matrix(layer, layer.weight).T).sin().sum(), parameters)
    found = torch.autograd.grad(layer(x).sin().sum(), parameters)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_compiled_block_has_no_graph_break_and_the_same_gradients(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    block = EDM2Block(8, 16, embedding_channels=8, variant="encoder", attention=True)
    block.modulation.gain.data.fill_(0.5)  # type: ignore[union-attr]
    x, e = torch.randn(2, 8, 4, 4, generator=generator), torch.randn(2, 8, generator=generator)
    compiled = torch.compile(copy.deepcopy(block), fullgraph=True, backend="aot_eager")
    for each in (block, compiled):
        each(x, e).square().sum().backward()
    for ours, theirs in zip(compiled.parameters(), block.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_kernels_of_a_layer_and_of_the_network() -> None:
    net = EDM2UNet((3, 8, 8), model_channels=8, channel_mult=(1, 2), num_blocks=1, attention_resolutions=())
    weights = sum(isinstance(layer, MPConv | MPLinear) for layer in net.modules())
    gains = sum(isinstance(layer, MPConv | MPLinear) and layer.gain is not None for layer in net.modules())
    with EmulatedDevice() as device:
        layer = MPConv(4, 4, kernel=3).to(DEVICE)
        matrix = layer.effective_weight(torch.bfloat16)
        assert device.kernels == 3
        device.forget()
        matrix.backward(torch.ones_like(matrix))
        assert device.kernels <= 10  # with that of ones
        net.to(DEVICE)
        x, c_noise = torch.zeros(2, 3, 8, 8, device=DEVICE), torch.zeros(2, device=DEVICE)
        counts = []
        for each in (net, net.fused()):
            device.forget()
            each(x, c_noise, None)
            counts.append(device.kernels)
    assert counts[0] - counts[1] == 3 * weights + gains
