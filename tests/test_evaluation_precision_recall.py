"""Precision and recall of sets with known values and against a brute-force count in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation import PrecisionRecall, RawPixels
from lightning_guide.evaluation.metrics.precision_recall import coverage, neighbor_radii


def brute_force(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:
    """Return precision and recall, one pair at a time."""

    def radius(points: np.ndarray, i: int) -> float:
        return sorted(float(np.linalg.norm(points[i] - points[j])) for j in range(len(points)) if j != i)[k - 1]

    def share(points: np.ndarray, centers: np.ndarray) -> float:
        radii = [radius(centers, i) for i in range(len(centers))]
        inside = [any(np.linalg.norm(p - c) <= r for c, r in zip(centers, radii, strict=True)) for p in points]
        return sum(inside) / len(points)

    return share(fake, real), share(real, fake)


def score(real: Tensor, fake: Tensor, *, size: int = 1000, **options: int) -> dict[str, float]:
    """Return the metric of raw points or images."""
    metric = PrecisionRecall(RawPixels(), **options)
    metric.prepare([Batch(part) for part in real.split(size)])
    for part in fake.split(size):
        metric.update(part, None)
    return {key: value.item() for key, value in metric.compute().items()}


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_agrees_with_brute_force(k: int, offset: float, generator: torch.Generator) -> None:
    real = torch.randn(60, 5, generator=generator) + offset
    fake = 0.7 * torch.randn(45, 5, generator=generator) + 0.5 + offset
    precision, recall = brute_force(real.double().numpy(), fake.double().numpy(), k)
    assert 0 < precision < 1 and 0 < recall < 1
    expected = {"precision": pytest.approx(precision, abs=1e-12), "recall": pytest.approx(recall, abs=1e-12)}
    assert score(real, fake, k=k) == expected
    assert score(real, fake, k=k, chunk=7, size=11) == expected


def test_equal_sets_have_one_and_distant_sets_zero(generator: torch.Generator) -> None:
    real = torch.randn(30, 2, generator=generator)
    assert score(real, real) == {"precision": 1.0, "recall": 1.0}
    assert score(real, real + 100) == {"precision": 0.0, "recall": 0.0}


def test_missing_mode_lowers_recall_and_extra_mode_precision(generator: torch.Generator) -> None:
    left, right = torch.randn(20, 2, generator=generator), torch.randn(20, 2, generator=generator) + 100
    both = torch.cat([left, right])
    assert score(both, left) == {"precision": 1.0, "recall": 0.5}
    assert score(left, both) == {"precision": 0.5, "recall": 1.0}


def test_balls_include_their_border_despite_rounding() -> None:
    real = 0.1 * torch.arange(10.0)[:, None]
    assert score(real, torch.tensor([[1.0], [-0.1], [1.01], [0.55]]), k=1)["precision"] == 0.75
    images = torch.arange(8, dtype=torch.uint8).reshape(8, 1, 1, 1)
    samples = torch.tensor([8, 9, 10, 11], dtype=torch.uint8).reshape(4, 1, 1, 1)
    assert score(images, samples, k=1) == {"precision": 0.25, "recall": 0.125}
    assert score(images, samples, k=2) == {"precision": 0.5, "recall": 0.25}


def test_repeated_examples_have_balls_of_radius_zero() -> None:
    real = torch.tensor([[0.3, 0.7]]).repeat(5, 1)
    far = torch.tensor([[9.0, 9.0]])
    fake = torch.tensor([[0.3, 0.7], [0.3, 0.71], [5.0, 5.0], [5.1, 5.0]])
    assert score(torch.cat([real, far]), fake, k=1, size=2)["precision"] == 1.0  # far's ball reaches all
    assert score(torch.cat([real, real + 1]), fake, k=3)["precision"] == 0.25


def test_radii_and_coverage_by_hand() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert neighbor_radii(points, 1).tolist() == [1, 1, 2, 4]
    assert neighbor_radii(points, 2, chunk=3).tolist() == [3, 2, 3, 6]
    centers, radii = torch.tensor([[0.0], [5.0]]), torch.tensor([1.0, 2.0])
    assert coverage(torch.tensor([[-1.0], [1.5], [3.0], [7.1]]), centers, radii, chunk=3).item() == 0.5
    with pytest.raises(ValueError, match="4-th nearest neighbor needs k >= 1 and more than k features, got 4"):
        neighbor_radii(points, 4)


def test_subset_of_a_large_reference_is_random_and_independent_of_batches() -> None:
    class Counted(RawPixels):
        extracted = 0

        def extract(self, x: Tensor) -> Tensor:
            self.extracted += len(x)
            return super().extract(x)

    real = torch.arange(1000.0)[:, None]
    keys = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = [keys.argsort()[:100].sort().values.tolist()]
    for size, most in ((1, 450), (37, 450), (1000, 100)):  # 100 (1 + ln 10) = 330 on average
        extractor = Counted()
        metric = PrecisionRecall(extractor, max_reference=100)
        metric.prepare([Batch(part) for part in real.split(size)])
        chosen.append(metric.reference.flatten().tolist())
        assert 100 <= extractor.extracted <= most
    assert chosen[0] == chosen[3]
    assert chosen[0] == chosen[1] == chosen[2]
    assert chosen[0] == sorted(set(chosen[0])) and len(chosen[0]) == 100
    assert 350 < sum(chosen[0]) / 100 < 650 and chosen[0][-1] > 900  # from all parts of the data


def test_invalid_settings_and_too_few_examples_raise() -> None:
    with pytest.raises(ValueError, match="needs k >= 1, max_reference > k and chunk >= 1, got 3, 3 and 1024"):
        PrecisionRecall(RawPixels(), max_reference=3)
    metric = PrecisionRecall(RawPixels())
    with pytest.raises(ValueError, match="PrecisionRecall is not prepared"):
        metric.update(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="needs at least 4 real examples, got 3"):
        metric.prepare([Batch(torch.zeros(3, 2))])
    metric.prepare([Batch(torch.zeros(4, 2))])
    with pytest.raises(ValueError, match="needs at least 4 samples, got 0"):
        metric.compute()
