"""Gradient ascent on guides: straight paths to a target, fresh draws in each step, the smoothness measure."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_guide.guidance.training_free import AddedNoise, Augmented, ConstantStep, Probe
from lightning_guide.guidance.training_free.gradient_probe import gradient_ascent, smoothness
from lightning_guide.objectives import Distance, SquaredDistance
from lightning_guide.seeds import SampleSeeds

double = torch.float64


def test_ascent_goes_straight_to_the_target() -> None:
    target = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=double)
    x = torch.zeros(2, 1, 4, 4, dtype=double)
    end, losses = gradient_ascent(Probe([Distance(target)]), x, seeds=SampleSeeds(0, range(2)), steps=20)
    # each step has length 0.01 sqrt(16)
    torch.testing.assert_close(end, (0.8 * target / target.norm()).expand(2, 1, 4, 4))
    expected = target.norm() - 0.04 * torch.arange(20, dtype=double)
    torch.testing.assert_close(losses, expected[:, None].expand(20, 2))


def test_energies_share_the_steps_equally() -> None:
    one, other = SquaredDistance(torch.tensor([4.0, 0.0])), SquaredDistance(torch.tensor([0.0, 4.0]))
    x = torch.zeros(1, 2, dtype=double)
    seeds = SampleSeeds(0, [0])
    end, losses = gradient_ascent(Probe([one, other]), x, seeds=seeds, steps=4, rule=ConstantStep(0.5))
    # x: (0, 0) -> (2, 0) -> (3, 0) -> (1.5, 2) -> (0.75, 3)
    torch.testing.assert_close(end, torch.tensor([[0.75, 3.0]], dtype=double))
    assert losses[:, 0].tolist() == pytest.approx([8, 2, 12.5, (1.5**2 + 2**2) / 2])
    with pytest.raises(ValueError, match="2 energies share 1 steps"):
        gradient_ascent(Probe([one, other]), x, seeds=seeds, steps=1)
    with pytest.raises(ValueError, match="at least one energy"):
        Probe([])


def test_draws_differ_between_steps_and_samples() -> None:
    probe = Probe([SquaredDistance(torch.zeros(3))], Augmented([AddedNoise(1.0)], 1))
    x = torch.ones(3, 3, dtype=double)
    end, losses = gradient_ascent(probe, x, seeds=SampleSeeds(0, range(3)), steps=5, rule=ConstantStep(1e-9))
    assert len(set(losses[:, 0].tolist())) == 5 and len(set(losses[0].tolist())) == 3
    alone, _ = gradient_ascent(probe, x[1:2], seeds=SampleSeeds(0, [1]), steps=5, rule=ConstantStep(1e-9))
    assert torch.equal(alone[0], end[1])


def test_smoothness_is_the_share_of_low_frequencies() -> None:
    position = torch.arange(16, dtype=double)
    slow, fast = (torch.cos(2 * math.pi * k * position / 16) for k in (2, 7))
    waves = torch.stack([slow.expand(16, 16), fast.expand(16, 16), (slow + fast).expand(16, 16)])[:, None]
    assert smoothness(3 + waves).tolist() == pytest.approx([1, 0, 0.5], abs=1e-9)
    noise = torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(smoothness(noise).mean()) == pytest.approx(24 / 63, abs=0.01)
