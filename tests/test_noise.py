"""Noise levels: the grid against its published values, the distributions against their moments."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_guide.noise import CustomGrid, Grid, InterpolatedGrid, KarrasGrid, LogNormal, LogUniform, LogUniformGrid

# fmt: off
PUBLISHED = [
    80, 66.9, 55.7, 46.2, 38.1, 31.2, 25.5, 20.6, 16.6, 13.3, 10.5, 8.28, 6.46, 5.00, 3.83, 2.90, 2.17, 1.61, 1.17,
    0.845, 0.598, 0.415, 0.283, 0.189, 0.123, 0.0774, 0.0474, 0.0279, 0.0158, 0.00845, 0.00427, 0.002,
]
# fmt: on


def test_karras_grid_has_the_published_levels() -> None:
    sigmas = KarrasGrid(32).sigmas()
    assert sigmas.shape == (33,) and sigmas.dtype == torch.float64 and float(sigmas[-1]) == 0
    assert sigmas[:-1].tolist() == pytest.approx(PUBLISHED, rel=5e-3)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_karras_grid_has_equal_steps_in_the_root(rho: float) -> None:
    sigmas = KarrasGrid(10, sigma_min=0.03, sigma_max=5.0, rho=rho).sigmas()
    roots = sigmas[:-1] ** (1 / rho)
    assert torch.allclose(roots.diff(), roots.diff()[0])
    assert sigmas[[0, -2]].tolist() == pytest.approx([5.0, 0.03], rel=1e-12)


def test_log_uniform_grid_has_equal_steps_in_the_logarithm() -> None:
    sigmas = LogUniformGrid(9, sigma_min=0.01, sigma_max=50.0).sigmas()
    assert torch.allclose(sigmas[:-1].log().diff(), torch.tensor(math.log(0.01 / 50) / 8, dtype=torch.float64))
    assert sigmas[[0, -2, -1]].tolist() == pytest.approx([50.0, 0.01, 0.0], rel=1e-12)


@pytest.mark.parametrize("kind", [KarrasGrid, LogUniformGrid])
def test_grids_descend_for_one_or_more_steps(kind: type[Grid]) -> None:
    assert kind(1).sigmas().tolist() == pytest.approx([80, 0])  # type: ignore[call-arg]
    assert bool((kind(64).sigmas().diff() < 0).all())  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [KarrasGrid, LogUniformGrid])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0; expected a whole number from 1 on"),
        ({"sigma_min": 0.0}, "0 < sigma_min < sigma_max, got 0.0 and 80.0"),
        ({"sigma_min": 3.0, "sigma_max": 3.0}, "got 3.0 and 3.0"),
        ({"sigma_max": math.nan}, "got 0.002 and nan"),
    ],
)
def test_grids_refuse_levels_that_do_not_descend(kind: type[Grid], arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


def test_karras_grid_refuses_nonpositive_rho() -> None:
    with pytest.raises(ValueError, match="rho > 0, got 0"):
        KarrasGrid(rho=0)


def test_log_normal(generator: torch.Generator) -> None:
    log = LogNormal(-0.4, 1.1).sample(40000, generator).log()
    assert log.dtype == torch.float32 and log.shape == (40000,)
    assert float(log.mean()) == pytest.approx(-0.4, abs=0.02) and float(log.std()) == pytest.approx(1.1, abs=0.015)
    z = (log + 0.4) / 1.1
    assert float((z.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.01)


def test_log_uniform(generator: torch.Generator) -> None:
    sigma = LogUniform(0.01, 10.0).sample(40000, generator)
    u = (sigma / 0.01).log() / math.log(1000)
    assert float(u.min()) >= -1e-6 and float(u.max()) <= 1 + 1e-6
    assert torch.histc(u, 10, 0, 1) / 4000 == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("noise", [LogNormal(), LogUniform()], ids=["LogNormal", "LogUniform"])
def test_distributions_use_only_the_generator(noise: LogNormal | LogUniform) -> None:
    first = noise.sample(5, torch.Generator().manual_seed(3))
    torch.manual_seed(99)
    assert torch.equal(first, noise.sample(5, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, noise.sample(5, torch.Generator().manual_seed(4)))


def test_distributions_refuse_invalid_ranges() -> None:
    with pytest.raises(ValueError, match="std > 0, got 0"):
        LogNormal(std=0)
    with pytest.raises(ValueError, match="0 < low < high, got low=2, high=1"):
        LogUniform(2, 1)


def test_an_interpolated_grid_passes_through_its_levels_with_equal_ratios_between() -> None:
    levels = [80.0, 5.0, 0.4, 0.002]
    torch.testing.assert_close(InterpolatedGrid(levels, num_steps=4).sigmas(), CustomGrid(levels).sigmas())
    sigmas = InterpolatedGrid(levels, num_steps=10).sigmas()
    torch.testing.assert_close(sigmas[[0, 3, 6, 9, 10]], CustomGrid(levels).sigmas())
    ratios = sigmas[1:10] / sigmas[:9]
    torch.testing.assert_close(ratios, ratios[[0, 3, 6]].repeat_interleave(3))
    ends = InterpolatedGrid([80.0, 0.002], num_steps=7).sigmas()
    torch.testing.assert_close(ends, LogUniformGrid(7).sigmas())


@pytest.mark.parametrize(
    ("levels", "num_steps", "said"),
    [
        ([1.0, 2.0], 4, "InterpolatedGrid needs finite levels that descend"),
        ([1.0], 4, "two levels and two steps"),
        ([2.0, 1.0], 1, "two levels and two steps"),
        ([2.0, 1.0], 2.5, "num_steps is 2.5; expected a whole number"),
    ],
)
def test_an_interpolated_grid_needs_levels_and_steps(levels: list[float], num_steps: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        InterpolatedGrid(levels, num_steps=num_steps)
