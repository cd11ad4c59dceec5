"""Class accuracy under a constant classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_guide.evaluation import ClassAccuracy, ClassifierFeatures
from lightning_guide.networks.classifiers import SmallClassifier
from lightning_guide.snapshots import SnapshotStore


@pytest.fixture
def metric(tmp_path: Path) -> ClassAccuracy:
    """Return the metric under a classifier that predicts class 2 for every image."""
    network = SmallClassifier([1, 4, 4], num_classes=3, widths=[8])
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    SnapshotStore(tmp_path / "snapshots").save(network.state_dict(), images=9, sigma_rel=0.0, recipe=network.recipe)
    metric = ClassAccuracy(ClassifierFeatures(str(tmp_path)))
    metric.prepare([])
    return metric


def images(count: int) -> Tensor:
    """Return random images."""
    return torch.randint(256, (count, 1, 4, 4), dtype=torch.uint8)


def test_accuracy_counts_labeled_samples_only(metric: ClassAccuracy) -> None:
    metric.update(images(5), torch.tensor([2, 2, 1, -1, 0]))
    metric.update(images(2), torch.tensor([2, -1]))
    metric.update(images(3), None)
    assert metric.compute()["class_agreement"].item() == pytest.approx(3 / 5)


def test_accuracy_without_labels_is_nan(metric: ClassAccuracy) -> None:
    metric.update(images(3), torch.full((3,), -1))
    assert metric.compute()["class_agreement"].isnan()


def test_missing_classifier_fails_in_prepare(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no classifier in the run '.*nowhere': .* does not exist"):
        ClassAccuracy(ClassifierFeatures(str(tmp_path / "nowhere"))).prepare([])
