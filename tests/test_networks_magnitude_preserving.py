"""Magnitude-preserving layers: unit RMS in, unit RMS out; weights on their spheres; gradients tangent to them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_guide.networks.magnitude_preserving import (
    MPConv,
    MPFourier,
    MPLinear,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize_weights_,
)
from lightning_guide.networks.rms_norm import normalize, pixel_norm


def rms(x: Tensor) -> float:
    """Root mean square of all elements."""
    return x.double().square().mean().sqrt().item()


def test_normalize_divides_by_epsilon_plus_rms() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-4, 1e-4]])
    expected = torch.stack([x[0] / (math.sqrt(12.5) + 1e-4), x[1], x[2] / 2e-4])
    torch.testing.assert_close(normalize(x), expected)


@pytest.mark.parametrize(("dim", "axes"), [(None, (1, 2, 3)), (1, (1,)), ((2, 3), (2, 3))])
def test_normalize_gives_unit_rms_over_the_given_axes(
    dim: int | tuple[int, ...] | None, axes: tuple[int, ...], generator: torch.Generator
) -> None:
    y = normalize(5 * torch.randn(3, 6, 4, 7, generator=generator, dtype=torch.float64), dim)
    spread = y.square().mean(dim=axes).sqrt() - 1
    assert spread.abs().max() < 3e-4  # eps / RMS, and RMS is about 5


def test_normalize_has_a_finite_gradient_at_zero() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    normalize(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full((2, 3), 1e4))  # 1 / eps; RMS contributes nothing


def test_normalize_does_not_overflow_in_half_precision() -> None:
    x = torch.full((2, 8), 1000.0, dtype=torch.float16)  # 1000^2 is beyond the range
    y = normalize(x)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y, torch.ones_like(x))


def test_pixel_norm_acts_on_each_position_separately(generator: torch.Generator) -> None:
    x = torch.randn(2, 5, 3, 4, generator=generator)
    y = pixel_norm(x)
    torch.testing.assert_close(y[1, :, 2, 3], normalize(x[1:2, :, 2, 3])[0])


def test_mp_silu_keeps_unit_rms() -> None:
    # Exactly, by quadrature: E[silu(z)^2] over z ~ N(0, 1).
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    energy = torch.trapezoid(mp_silu(z) ** 2 * density, z).item()
    assert energy == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_mp_sum_keeps_unit_rms_and_has_the_given_weights(t: float, generator: torch.Generator) -> None:
    a, b = torch.randn(2, 200_000, generator=generator, dtype=torch.float64)
    y = mp_sum(a, b, t)
    assert rms(y) == pytest.approx(1, abs=0.01)
    torch.testing.assert_close(y, ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2))


@pytest.mark.parametrize(("Na", "Nb"), [(8, 8), (4, 12), (30, 2)])
@pytest.mark.parametrize("t", [0.3, 0.5])
def test_mp_cat_splits_energy_by_t_for_any_channels(Na: int, Nb: int, t: float) -> None:
    a, b = torch.ones(2, Na, 3, dtype=torch.float64), -torch.ones(2, Nb, 3, dtype=torch.float64)
    y = mp_cat(a, b, t)
    assert y.shape == (2, Na + Nb, 3)
    assert rms(y) == pytest.approx(1)
    energy_a, energy_b = y[:, :Na].square().sum().item(), y[:, Na:].square().sum().item()
    assert energy_b / energy_a == pytest.approx(t**2 / (1 - t) ** 2)


def test_fourier_features_have_unit_rms_and_depend_only_on_the_seed() -> None:
    features = MPFourier(256)
    y = features(torch.linspace(-2, 2, 400))
    assert y.shape == (400, 256)
    assert rms(y) == pytest.approx(1, abs=0.05)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again, other = MPFourier(256), MPFourier(256, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again.frequencies, features.frequencies)
    assert torch.equal(again.phases, features.phases)
    assert not torch.equal(other.frequencies, features.frequencies)
    assert set(features.state_dict()) == {"frequencies", "phases"}


def test_fourier_bandwidth_scales_the_frequencies() -> None:
    narrow, wide = MPFourier(5000), MPFourier(5000, bandwidth=3.0)
    torch.testing.assert_close(wide.frequencies, 3 * narrow.frequencies)
    assert narrow.frequencies.std().item() == pytest.approx(2 * math.pi, rel=0.05)
    assert 0 <= narrow.phases.min() < narrow.phases.max() <= 2 * math.pi


def test_fourier_stays_in_float32_for_low_precision_input() -> None:
    features = MPFourier(16)
    a = torch.tensor([0.3, -1.2]).to(torch.bfloat16)
    assert features(a).dtype == torch.float32
    assert features.to(torch.bfloat16)(a.float()).dtype == torch.float32


def test_layers_keep_unit_rms() -> None:
    # Inputs come from the generator of the weights; another one with the same seed would repeat the same numbers.
    linear, conv = MPLinear(50, 400), MPConv(20, 200, kernel=3)
    assert rms(linear(torch.randn(500, 50))) == pytest.approx(1, abs=0.03)
    inner = conv(torch.randn(8, 20, 16, 16))[:, :, 1:-1, 1:-1]  # padding lowers the border
    assert rms(inner) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("scale", [0.01, 1.0, 7.0])
def test_layers_ignore_the_length_of_their_rows(scale: float, generator: torch.Generator) -> None:
    # Averaged weights lie inside the sphere.
    x = torch.randn(4, 12, generator=generator)
    layer = MPLinear(12, 5)
    expected = layer(x)
    with torch.no_grad():
        layer.weight.mul_(scale)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0.05 if scale < 0.1 else 1e-3)
    torch.testing.assert_close(layer.effective_weight(), normalize(layer.weight) / math.sqrt(12), rtol=1e-5, atol=1e-6)


def test_learned_gain_starts_at_zero_and_scales_the_output(generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 4, 4, generator=generator)
    layer, plain = MPConv(3, 5, kernel=3, learned_gain=True), MPConv(3, 5, kernel=3)
    assert plain.gain is None
    assert layer.gain is not None
    assert not layer(x).any()
    plain.load_state_dict({"weight": layer.weight})
    with torch.no_grad():
        layer.gain.fill_(2.5)
    torch.testing.assert_close(layer(x), 2.5 * plain(x))


@pytest.mark.parametrize("layer", [MPLinear(6, 4), MPConv(2, 4, kernel=3)], ids=["linear", "conv"])
def test_gradient_is_tangent_to_the_sphere_of_each_row(layer: MPLinear | MPConv) -> None:
    layer = layer.double()
    normalize_weights_(layer)
    x = torch.randn(3, 6, dtype=torch.float64) if isinstance(layer, MPLinear) else torch.randn(3, 2, 5, 5).double()
    layer(x).sin().sum().backward()
    assert layer.weight.grad is not None
    gradient, weight = layer.weight.grad.flatten(1), layer.weight.detach().flatten(1)
    cosine = (gradient * weight).sum(1) / (gradient.norm(dim=1) * weight.norm(dim=1))
    assert gradient.norm(dim=1).min() > 1e-3
    assert cosine.abs().max() < 1e-3  # eps in the denominator leaves 1e-4 of the radial part


def test_normalize_weights_changes_only_row_norms_of_mp_weights() -> None:
    tree = nn.ModuleDict(
        {
            "conv": MPConv(3, 5, kernel=3),
            "inner": nn.Sequential(MPLinear(7, 4, learned_gain=True), nn.Linear(4, 4)),
        }
    )
    conv, linear, foreign = tree["conv"], tree["inner"][0], tree["inner"][1]
    with torch.no_grad():
        conv.weight.mul_(9)
        linear.gain.fill_(3.0)
    before = foreign.weight.clone()
    direction = nn.functional.normalize(conv.weight.detach().flatten(1))
    normalize_weights_(tree)
    for layer, fan_in in ((conv, 27), (linear, 7)):
        norms = layer.weight.flatten(1).norm(dim=1) / math.sqrt(fan_in)
        assert (norms - 1).abs().max() < 5e-4
        assert layer.weight.requires_grad
    torch.testing.assert_close(nn.functional.normalize(conv.weight.detach().flatten(1)), direction)
    assert torch.equal(foreign.weight, before)
    assert linear.gain.item() == 3


def test_projection_after_a_step_equals_projection_before_the_next() -> None:
    # The paper projects at the start of every forward pass, this library at construction and after a step.
    torch.manual_seed(1)
    ours, theirs = MPLinear(6, 4), MPLinear(6, 4)
    theirs.load_state_dict(ours.state_dict())
    normalize_weights_(ours)
    optimizers = [torch.optim.Adam(layer.parameters(), lr=0.05) for layer in (ours, theirs)]
    for step in range(5):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        normalize_weights_(theirs)
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            assert torch.equal(ours.weight, theirs.weight) or layer is theirs
            optimizer.zero_grad()
            layer(x).sin().sum().backward()
            optimizer.step()
        normalize_weights_(ours)
    normalize_weights_(theirs)
    assert torch.equal(ours.weight, theirs.weight)


def test_normalize_weights_of_a_tree_without_mp_weights_does_nothing() -> None:
    layer = nn.Linear(2, 2)
    before = layer.weight.clone()
    normalize_weights_(layer)
    assert torch.equal(layer.weight, before)
