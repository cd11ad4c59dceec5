"""Random numbers by counters: known answers of Philox, statistics, independence of batches, no wait for the device."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import lightning_guide as lg
from lightning_guide.device_seeds import DeviceSeeds, philox, sample_seeds
from lightning_guide.evaluation import Evaluation
from lightning_guide.samplers import DDIM, Euler, SDEDPMSolver2M
from lightning_guide.seeds import SampleSeeds
from scripts.lib.emulated_device import DEVICE, EmulatedDevice

KNOWN = [  # counter, key, result: the known answers published with the paper
    ([0] * 4, (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_known_answers(counter: list[int], key: tuple[int, int], expected: str) -> None:
    words = philox([torch.tensor([word]) for word in counter], key)
    assert " ".join(f"{int(word):08x}" for word in words) == expected


def draw(seeds: SampleSeeds, device: torch.device | str = "cpu") -> list[Tensor]:
    """Draw twice from each distribution."""
    rounds = []
    for _ in range(2):
        rounds += [seeds.normal("a", (4, 5), device), seeds.normal("b", (), device), seeds.uniform("u", (3,), device)]
        rounds += [seeds.integers("k", 1000, device)]
    return rounds


@pytest.mark.parametrize("split", [[1] * 6, [2, 4], [5, 1]], ids=str)
def test_samples_do_not_depend_on_their_batch(split: list[int]) -> None:
    indices = torch.tensor([5, 0, 17, 3, 2**31, 2**40 + 1])
    whole = draw(DeviceSeeds(3, indices))
    parts = [draw(DeviceSeeds(3, part)) for part in indices.split(split)]
    for together, *separate in zip(whole, *parts, strict=True):
        assert torch.equal(together, torch.cat(separate))


def test_every_sample_purpose_seed_and_draw_has_other_numbers() -> None:
    far = [0, 1, 2**32, 2**33 + 1]  # of which the low words repeat
    rows = []
    for seed in (0, 1, 2**62):
        seeds = DeviceSeeds(seed, far)
        rows += [seeds.uniform(purpose, (2,)) for purpose in ("a", "a", "b")]
    numbers = torch.cat(rows).flatten()
    assert len(set(numbers.tolist())) > 0.999 * len(numbers)
    assert torch.equal(DeviceSeeds(0, far).uniform("a", (2,)), rows[0])


def test_numbers_have_their_distributions() -> None:
    seeds = DeviceSeeds(11, range(200))
    normal, uniform = seeds.normal("n", (1001,)).double(), seeds.uniform("u", (1001,)).double()
    assert (
        normal.shape == (200, 1001) and normal.dtype == torch.float64 and seeds.normal("x", ()).dtype == torch.float32
    )
    assert stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-3
    assert 0 <= uniform.min() and uniform.max() < 1
    count = normal.numel()
    for power, moment in enumerate((0.0, 1.0, 0.0, 3.0, 0.0, 15.0), 1):
        spread = (normal**power).std() / count**0.5
        assert abs((normal**power).mean() - moment) < 5 * spread, power
    tails = (normal.abs() > 4).sum().item()  # expected 12.7
    assert 2 <= tails <= 30
    dice = DeviceSeeds(11, range(6000)).integers("k", 6)
    assert stats.chisquare(np.bincount(dice.numpy(), minlength=6)).pvalue > 1e-3


def test_numbers_of_samples_draws_and_elements_are_independent() -> None:
    seeds = DeviceSeeds(5, range(100))
    first, second, other = (seeds.normal(purpose, (400,)).double() for purpose in ("a", "a", "b"))
    pairs = {
        "next element": (first[:, :-1], first[:, 1:]),
        "radius and angle": (first[:, 0::2] ** 2, first[:, 1::2] ** 2),
        "next block": (first[:, :-4], first[:, 4:]),
        "next sample": (first[:-1], first[1:]),
        "next draw": (first, second),
        "other purpose": (first, other),
        "other seed": (first, DeviceSeeds(6, range(100)).normal("a", (400,)).double()),
        "host": (first, SampleSeeds(5, range(100)).normal("a", (400,)).double()),
    }
    for name, (a, b) in pairs.items():
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()
        assert abs(correlation) < 5 / a.numel() ** 0.5, name


def test_device_draws_the_numbers_of_the_cpu_without_waiting() -> None:
    with EmulatedDevice() as device:
        found = draw(DeviceSeeds(2, range(3)), DEVICE)
        assert not device.waits
        kernels = device.kernels
        more = draw(DeviceSeeds(2, range(300)), DEVICE)
        assert device.kernels == 2 * kernels  # no loop over samples
        assert len(more[0]) == 300
        for ours, theirs in zip(found, draw(DeviceSeeds(2, range(3))), strict=True):
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6, atol=1e-6)
            assert ours.dtype.is_floating_point or torch.equal(ours.cpu(), theirs)


@pytest.mark.parametrize("sampler", [DDIM(3, eta=1.0), SDEDPMSolver2M(3)], ids=lambda sampler: type(sampler).__name__)
def test_stochastic_samples_on_the_device_are_those_of_the_cpu_without_waiting(sampler: lg.Sampler) -> None:
    model = lg.gaussian([0.0, 1.0], 0.25)
    expected = sampler.sample(model, seeds=DeviceSeeds(1, range(3))).x
    with EmulatedDevice() as device:
        model.to(DEVICE)
        device.forget()
        found = sampler.sample(model, seeds=DeviceSeeds(1, range(3)), device=DEVICE).x
        assert not device.waits
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)


def test_evaluation_and_sample_draw_where_they_are_told() -> None:
    evaluation = Evaluation(seed=4)
    device = replace(evaluation, noise="device")
    assert type(evaluation.seeds([0])) is SampleSeeds and type(device.seeds([0])) is DeviceSeeds
    assert evaluation.fingerprint != device.fingerprint
    model = lg.gaussian([0.0, 0.0], 0.25)
    x = lg.sample(model, Euler(4), count=6, seed=4, noise="device")
    assert torch.equal(x, lg.sample(model, Euler(4), count=6, seed=4, noise="device", batch_size=4))
    assert not torch.equal(x, lg.sample(model, Euler(4), count=6, seed=4))
    with pytest.raises(ValueError, match="host or device, but got 'gpu'"):
        sample_seeds("gpu", 0, [0])  # type: ignore[arg-type]


def test_old_results_keep_their_fingerprint() -> None:
    assert Evaluation().fingerprint == Evaluation(noise="host").fingerprint == "9cc606ca80c6dd0d"
