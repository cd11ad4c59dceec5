"""LPIPS diversity: sums of vectors against torchmetrics' LPIPS of all pairs, with a random AlexNet."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation import LpipsDiversity, LpipsFeatures
from tests.tiny_scores import write_alexnet


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_alexnet(tmp_path_factory.mktemp("lpips"))


@pytest.fixture(scope="module")
def extractor(weights: str) -> LpipsFeatures:
    """The extractor of these weights."""
    return LpipsFeatures(weights=weights)


def distance(extractor: LpipsFeatures, x: Tensor, y: Tensor) -> float:
    """Return torchmetrics' LPIPS of two images uint8 (3, H, W)."""
    a, b = (each[None].float() / 127.5 - 1 for each in (x, y))
    with torch.no_grad():
        return float(extractor.network()(a, b))


def test_it_is_the_mean_distance_over_all_pairs_of_a_class(
    extractor: LpipsFeatures, generator: torch.Generator
) -> None:
    x = torch.randint(256, (9, 3, 36, 40), dtype=torch.uint8, generator=generator)
    x[4:] //= 2
    labels = torch.tensor([0, 0, -1, 0, 2, 2, 1, 2, 0])
    metric = LpipsDiversity(extractor, num_classes=4)
    metric.prepare([Batch(x[:1])])
    for begin in (0, 5):
        metric.update(x[begin : begin + 5][: 5 if begin == 0 else 4], labels[begin : begin + 5])
    means = []
    for label in (0, 2):  # one sample of class 1 has no pair, and class 3 no sample
        pairs = combinations(x[labels == label], 2)
        means.append(np.mean([distance(extractor, a, b) for a, b in pairs]))
    assert metric.compute()["lpips_diversity"].item() == pytest.approx(float(np.mean(means)), rel=1e-3)
    assert means[0] > 1e-4
    squared = (extractor(x[:1]) - extractor(x[4:5])).square().sum()
    assert squared.item() == pytest.approx(distance(extractor, x[0], x[4]), rel=1e-3)


def test_equal_images_have_none_and_labels_may_be_absent(extractor: LpipsFeatures) -> None:
    metric = LpipsDiversity(extractor)
    with pytest.raises(ValueError, match="LpipsDiversity is not prepared"):
        metric.update(torch.zeros(1, 3, 36, 36, dtype=torch.uint8))
    x = torch.randint(256, (1, 1, 36, 36), dtype=torch.uint8).expand(5, -1, -1, -1)
    metric.prepare([Batch(x)])
    metric.update(x, torch.tensor([7, -1, 0, 1, 2]))
    assert metric.compute()["lpips_diversity"].item() == pytest.approx(0, abs=1e-9)
    metric.reset()
    metric.update(x[:1])
    assert metric.compute()["lpips_diversity"].isnan()
    several = LpipsDiversity(extractor, num_classes=2)
    several.prepare([Batch(x)])
    with pytest.raises(ValueError, match="has 2 classes, and none for class 2"):
        several.update(x, torch.tensor([0, 1, 2, 0, 0]))


def test_files_of_other_networks_are_refused(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth does not hold torchvision's weights"):
        LpipsFeatures(weights=str(tmp_path / "other.pth")).load()
    with pytest.raises(ValueError, match="weights of LpipsFeatures.alex.: there is no file absent.pth"):
        LpipsFeatures(weights="absent.pth").load()
    with pytest.raises(ValueError, match="'alex' or 'vgg', got 'squeeze'"):
        LpipsFeatures("squeeze")  # type: ignore[arg-type]
