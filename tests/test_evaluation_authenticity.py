"""Authenticity against explicit loops and known cases."""

from __future__ import annotations

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from lightning_guide.evaluation import Authenticity, RawPixels
from tests.features import score


def test_it_is_the_definition(generator: torch.Generator) -> None:
    real, fake = torch.randn(150, 5, generator=generator), 0.9 * torch.randn(130, 5, generator=generator)
    found = score(Authenticity(RawPixels(), chunk=11), real, fake)["authenticity"]
    neighbors = NearestNeighbors().fit(real.double().numpy())
    distance, nearest = (each[:, 0] for each in neighbors.kneighbors(fake.double().numpy(), 1))
    among = neighbors.kneighbors(n_neighbors=1)[0][:, 0]  # itself left out
    assert found == pytest.approx(float((distance > among[nearest]).mean()), abs=1e-12)
    assert 0.2 < found < 0.8


@pytest.mark.parametrize(("width", "expected"), [(2, 0.35), (128, 0.84)])
def test_new_draws_have_more_in_more_dimensions(width: int, expected: float, generator: torch.Generator) -> None:
    real, fake = torch.randn(2, 1000, width, generator=generator)
    assert score(Authenticity(RawPixels()), real, fake, size=1000)["authenticity"] == pytest.approx(expected, abs=0.06)


def test_copies_have_none_and_strangers_all(generator: torch.Generator) -> None:
    real = torch.randn(60, 4, generator=generator)
    near = real + 1e-4 * torch.randn(60, 4, generator=generator)
    assert score(Authenticity(RawPixels()), real, near) == {"authenticity": 0}
    assert score(Authenticity(RawPixels()), real, real + 100) == {"authenticity": 1}
    twice = real.repeat(2, 1)  # every example has a copy at distance 0
    assert score(Authenticity(RawPixels()), twice, real) == {"authenticity": 0}
    half = torch.cat([near[:30], real[:30] + 100])
    assert score(Authenticity(RawPixels(), chunk=7), real, half) == {"authenticity": 0.5}
