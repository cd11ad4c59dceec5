"""MIND against POT, closed forms and explicit quantile functions."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch

from lightning_guide.data import Batch
from lightning_guide.evaluation import MIND, RawPixels, squared_wasserstein
from tests.features import directions_of, score


@pytest.mark.parametrize("count", [90, 61])
def test_it_is_the_sliced_distance_of_pot_over_the_same_directions(count: int, generator: torch.Generator) -> None:
    real, fake = torch.randn(90, 7, generator=generator), 1.3 * torch.randn(count, 7, generator=generator) + 0.4
    ours = score(MIND(RawPixels(), directions=40, chunk=9), real, fake)["mind"]
    projections = directions_of(MIND(RawPixels(), directions=40), 7).T.numpy()
    distance = ot.sliced_wasserstein_distance(real.double().numpy(), fake.double().numpy(), projections=projections)
    assert ours == pytest.approx(3 * 7 * float(distance) ** 2, rel=1e-9)


def test_a_shift_gives_three_times_the_frechet_distance(generator: torch.Generator) -> None:
    real, shift = torch.randn(50, 5, generator=generator), torch.tensor([0.5, 0.0, -1.0, 0.0, 2.0])
    found = score(MIND(RawPixels(), directions=20_000), real, real + shift)["mind"]
    assert found == pytest.approx(3 * float(shift.square().sum()), rel=0.03)  # E (u . shift)^2 = |shift|^2 / F
    assert score(MIND(RawPixels()), real, real.flip(0))["mind"] == pytest.approx(0, abs=1e-12)


def test_quantile_functions_of_unequal_numbers_of_points(generator: torch.Generator) -> None:
    a, b = (torch.randn(3, n, generator=generator, dtype=torch.float64).sort(dim=1).values for n in (6, 10))
    u = (np.arange(30_000) + 0.5) / 30_000
    fine = [(part[:, (u * part.shape[1]).astype(int)]) for part in (a, b)]
    torch.testing.assert_close(squared_wasserstein(a, b), (fine[0] - fine[1]).square().mean(1), rtol=1e-9, atol=0)


def test_settings_and_sets_that_are_too_small() -> None:
    with pytest.raises(ValueError, match="MIND needs directions >= 1 and chunk >= 1, got 0 and 64"):
        MIND(RawPixels(), directions=0)
    metric = MIND(RawPixels())
    metric.prepare([Batch(torch.randn(4, 2))])
    metric.update(torch.zeros(0, 2))
    with pytest.raises(ValueError, match="MIND needs at least 1 samples, got 0"):
        metric.compute()
