"""Class shares over any number of batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_guide.evaluation import ClassifierFeatures, ClassShares
from lightning_guide.networks.classifiers import SmallClassifier


class Bright(ClassifierFeatures):
    """Classifier of four brightness ranges, without a network."""

    def __init__(self) -> None:
        super().__init__("nowhere")

    def _load(self) -> SmallClassifier:
        return SmallClassifier((1, 4, 4), num_classes=4, widths=[8])

    def logits(self, x: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(x[:, 0, 0, 0].long() // 64, 4).float()


def images(*levels: int) -> Tensor:
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)


def test_class_shares_over_batches_and_after_reset() -> None:
    metric = ClassShares(Bright())
    with pytest.raises(ValueError, match="is not prepared"):
        metric.update(images(1))
    metric.prepare([])
    metric.update(images(1, 255, 2))
    metric.update(images(70))
    assert {name: float(share) for name, share in metric.compute().items()} == {
        "share_0": 0.5,
        "share_1": 0.25,
        "share_2": 0.0,
        "share_3": 0.25,
    }
    metric.reset()
    metric.update(images(200), torch.tensor([0]))
    assert float(metric.compute()["share_3"]) == 1
