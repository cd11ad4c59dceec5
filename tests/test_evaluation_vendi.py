"""The Vendi score against the authors' package and exact values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from vendi_score import vendi

from lightning_guide.data import Batch
from lightning_guide.evaluation import RawPixels, VendiScore
from tests.features import score

ORDERS = (0.5, 1.0, 2.0, math.inf)


@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")  # in the package
@pytest.mark.parametrize("count", [9, 80])
def test_it_is_that_of_the_authors_package(count: int, generator: torch.Generator) -> None:
    x = torch.randn(count, 12, generator=generator) + 0.5
    rows = F.normalize(x.double(), dim=1).numpy()
    ours = score(VendiScore(RawPixels(), orders=ORDERS), x, x, size=7)
    for q, found in zip(ORDERS[:3], ours.values(), strict=False):
        tolerance = 1e-6 if q == 0.5 else 1e-9  # the package keeps eigenvalues that are rounding errors
        assert found == pytest.approx(vendi.score_K(rows @ rows.T, q=q), rel=tolerance)
    assert ours["vendi_inf"] == pytest.approx(count / np.linalg.eigvalsh(rows @ rows.T).max(), rel=1e-9)
    assert list(ours) == ["vendi_0.5", "vendi", "vendi_2", "vendi_inf"]


def test_equal_samples_count_once_and_orthogonal_ones_all(generator: torch.Generator) -> None:
    same = torch.randn(1, 6, generator=generator).expand(20, -1) * torch.linspace(1, 9, 20)[:, None]
    assert score(VendiScore(RawPixels(), orders=ORDERS), same, same) == {
        name: pytest.approx(1, rel=1e-6) for name in ("vendi_0.5", "vendi", "vendi_2", "vendi_inf")
    }
    axes = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q[:5]
    for repeats in (1, 7):
        rows = axes.repeat(repeats, 1)
        found = score(VendiScore(RawPixels(), orders=ORDERS), rows, rows)
        assert list(found.values()) == pytest.approx([5] * 4, rel=1e-5)


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"positive orders, got \[0\]"):
        VendiScore(RawPixels(), orders=[0])
    with pytest.raises(ValueError, match="VendiScore is not prepared"):
        VendiScore(RawPixels()).update(torch.zeros(2, 2))
    metric = VendiScore(RawPixels())
    metric.prepare([Batch(torch.zeros(1, 2))])
    metric.update(torch.zeros(0, 2))
    assert metric.compute()["vendi"].isnan()
