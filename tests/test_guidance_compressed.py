"""Compressed copies of a model as its guider: rounded and pruned weights, the model itself unchanged."""

from __future__ import annotations

import pytest
import torch

from lightning_guide.guidance import Autoguidance, PrunedWeights, QuantizedWeights
from lightning_guide.networks import PointMLP
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.runs.models import RunModels


def models() -> RunModels:
    network = PointMLP((2,), width=16)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    return RunModels(Preconditioned(network).eval(), run="none", device=torch.device("cpu"))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_is_within_half_a_step_of_each_channel(bits: int) -> None:
    weight = torch.randn(5, 4, 3, 3)
    weight[2] = 0
    rounded = QuantizedWeights(bits).change(weight)
    step = weight.abs().flatten(1).amax(1) / (2 ** (bits - 1) - 1)
    assert bool(((rounded - weight).abs().flatten(1).amax(1) <= step / 2 + 1e-6).all())
    for channel, size in zip(rounded, step, strict=True):
        assert len(channel.unique()) <= 2**bits - 1
        if size > 0:
            torch.testing.assert_close(channel / size, (channel / size).round(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_the_smallest_weights_are_zero(fraction: float) -> None:
    weight = torch.randn(10, 10)
    pruned = PrunedWeights(fraction).change(weight)
    zero = pruned == 0
    assert int(zero.sum()) == round(100 * fraction) and torch.equal(pruned[~zero], weight[~zero])
    assert weight[zero].abs().max() <= weight[~zero].abs().min()


@pytest.mark.parametrize("guider", [QuantizedWeights(3), PrunedWeights(0.4)])
def test_it_guides_and_leaves_the_model_as_it_is(guider: QuantizedWeights | PrunedWeights) -> None:
    run = models()
    before = {name: value.clone() for name, value in run.main.state_dict().items()}
    bad = guider.resolve(run)
    x, sigma = torch.randn(4, 2), torch.tensor(0.8)
    good, worse = run.main(x, sigma), bad(x, sigma)
    assert not torch.equal(good, worse)
    guided = Autoguidance(guider, 1.7).resolve(run)(x, sigma)
    torch.testing.assert_close(guided, worse + 1.7 * (good - worse))
    for (name, value), other in zip(run.main.named_parameters(), bad.parameters(), strict=True):
        assert torch.equal(value, before[name]) and torch.equal(value, other) == (value.ndim < 2)


def test_the_error_halves_with_each_bit() -> None:
    run = models()
    x, sigma = torch.randn(64, 2), torch.tensor(0.8)
    coarse, fine = (
        float((QuantizedWeights(bits).resolve(run)(x, sigma) - run.main(x, sigma)).detach().norm()) for bits in (6, 12)
    )
    assert 16 < coarse / fine < 256  # about 2^6


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="QuantizedWeights needs 2 to 16 bits, got 1"):
        QuantizedWeights(1)
    for fraction in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="PrunedWeights needs a fraction between 0 and 1"):
            PrunedWeights(fraction)
