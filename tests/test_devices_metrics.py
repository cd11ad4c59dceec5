"""Metrics on the emulated device: the CPU's results, no mixed devices, a bounded number of waits in a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.distributions.fractal import FractalTree
from lightning_guide.evaluation import (
    CMMD,
    HPS,
    MIND,
    SFID,
    AccuracyByClass,
    AestheticScore,
    Authenticity,
    ClassAccuracy,
    ClassShares,
    ClipFeatures,
    ClipScore,
    DensityCoverage,
    FrechetDistance,
    FrechetInterval,
    ImageReward,
    InceptionScore,
    KernelDistance,
    LpipsDiversity,
    LpipsFeatures,
    Memorization,
    MotionMetrics,
    PrecisionRecall,
    RawPixels,
    SampleMetric,
    VendiScore,
)
from lightning_guide.evaluation.metrics import OffSupport, exact_density
from lightning_guide.evaluation.metrics.exact_density import DensityMetrics
from lightning_guide.objectives import Goal, Obstacle
from scripts.lib.emulated_device import DEVICE, EmulatedDevice, Wait
from tests.tiny_clip import write_clip
from tests.tiny_scores import stub_packages, write_alexnet, write_head

WORDS = ["a cat", "a small dog", "a red car", "a tree"]


class Classes(RawPixels):
    """Classifier of four classes whose logits are the data, which are also the features of four places."""

    num_classes = 4

    def classifier(self, device: torch.device) -> Classes:
        return self

    def logits(self, x: Tensor) -> Tensor:
        return x

    def spatial(self, x: Tensor) -> Tensor:
        return x


POINTS: dict[str, tuple[Callable[[], SampleMetric], int]] = {
    "Frechet distance": (lambda: FrechetDistance(Classes()), 0),
    "Frechet interval": (lambda: FrechetInterval(Classes()), 0),
    "spatial Frechet distance": (lambda: SFID(Classes()), 0),
    "kernel distance": (lambda: KernelDistance(Classes()), 0),
    "CMMD": (lambda: CMMD(Classes()), 0),
    "MIND": (lambda: MIND(Classes(), directions=20), 0),
    "precision and recall": (lambda: PrecisionRecall(Classes()), 0),
    "density and coverage": (lambda: DensityCoverage(Classes()), 0),
    "authenticity": (lambda: Authenticity(Classes()), 0),
    "memorization": (lambda: Memorization(Classes()), 0),
    "Inception score": (lambda: InceptionScore(Classes()), 0),
    "Vendi score": (lambda: VendiScore(Classes(), orders=[0.5, 1, 2]), 0),
    "class accuracy": (lambda: ClassAccuracy(Classes()), 0),  # type: ignore[arg-type]
    "accuracy by class": (lambda: AccuracyByClass(Classes()), 1),  # type: ignore[arg-type]
    "class shares": (lambda: ClassShares(Classes()), 0),  # type: ignore[arg-type]
    "off the support": (lambda: OffSupport(2), 0),
    "motions": (lambda: MotionMetrics(Goal([1.0, 0.0]), Obstacle([0.0, 0.5], 0.7)), 0),
    "exact density": (lambda: DensityMetrics(FractalTree(depth=2)), 0),
}
"""Metrics of points, with the waits of each batch."""

SHAPES = {"motions": (2, 6), "exact density": (2,)}
"""Of one sample; by default (4,)."""

IMAGES: dict[str, tuple[Callable[[Path], SampleMetric], int]] = {
    "CLIP score": (lambda folder: ClipScore(ClipFeatures(*write_clip(folder)), WORDS), 1),
    "CMMD of CLIP": (lambda folder: CMMD(ClipFeatures(*write_clip(folder))), 0),
    "aesthetic score": (
        lambda folder: AestheticScore(ClipFeatures(*write_clip(folder)), write_head(folder)[1]),
        0,
    ),
    "ImageReward": (lambda folder: ImageReward(WORDS), 2),
    "HPS": (lambda folder: HPS(WORDS), 2),
    "LPIPS diversity": (lambda folder: LpipsDiversity(LpipsFeatures(weights=write_alexnet(folder)), num_classes=4), 1),
}
"""Metrics of images, with the waits of each batch."""


def measured(
    place: torch.device, metric: SampleMetric, device: EmulatedDevice, real: Tensor, drawn: Tensor, labels: Tensor
) -> tuple[Tensor, list[Wait]]:
    """Results of two batches, and the waits of the second."""
    metric.to(place)
    metric.prepare([Batch(each.to(place)) for each in real.split(20)])
    half = len(drawn) // 2
    for part, label in zip(drawn.split(half), labels.split(half), strict=True):
        x, condition = part.to(place), label.to(place)
        device.forget()
        metric.update(x, condition)
    waits = list(device.waits)
    return torch.stack([each.cpu().double() for each in metric.compute().values()]), waits


def assert_the_same(make: Callable[[], SampleMetric], waits: int, real: Tensor, drawn: Tensor, labels: Tensor) -> None:
    with EmulatedDevice() as device:
        expected, _ = measured(torch.device("cpu"), make(), device, real, drawn, labels)
        found, counted = measured(DEVICE, make(), device, real, drawn, labels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8, equal_nan=True)
    assert len(counted) == waits, counted


@pytest.mark.parametrize("name", POINTS)
def test_metric_has_the_results_of_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_density, "TRUE_SAMPLES", 2**14)
    generator = torch.Generator().manual_seed(0)
    real, drawn = torch.randn(2, 60, *SHAPES.get(name, (4,)), generator=generator)
    labels = torch.randint(-1, 4, (60,), generator=generator)
    assert_the_same(*POINTS[name], real, drawn, labels)


@pytest.mark.parametrize("name", IMAGES)
def test_metric_of_images_has_the_results_of_the_cpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_packages(monkeypatch)
    make, waits = IMAGES[name]
    generator = torch.Generator().manual_seed(0)
    real, drawn = torch.randint(256, (2, 8, 3, 36, 36), generator=generator).to(torch.uint8)
    labels = torch.tensor([0, 1, -1, 1, 3, 0, -1, 3])
    assert_the_same(lambda: make(tmp_path), waits, real, drawn, labels)
