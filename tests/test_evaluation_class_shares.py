"""Class shares: what a classifier sees, over any number of batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_guide.evaluation import ClassifierFeatures, ClassShares
from lightning_guide.networks.classifiers import SmallClassifier


class Bright(ClassifierFeatures):
    """Class = a quarter of the brightness range, no network."""

    def __init__(self) -> None:
        super().__init__("nowhere")
        self._classifier = SmallClassifier((1, 4, 4), num_classes=4, widths=[8])

    def logits(self, x: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(x[:, 0, 0, 0].long() // 64, 4).float()


def pictures(*levels: int) -> Tensor:
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)


def test_shares() -> None:
    metric = ClassShares(Bright())
    with pytest.raises(ValueError, match="has seen no real data yet"):
        metric.update(pictures(1))
    metric.prepare([])
    metric.update(pictures(1, 255, 2))
    metric.update(pictures(70))
    assert {name: float(share) for name, share in metric.compute().items()} == {
        "share_0": 0.5,
        "share_1": 0.25,
        "share_2": 0.0,
        "share_3": 0.25,
    }
    metric.reset()
    metric.update(pictures(200), torch.tensor([0]))
    assert float(metric.compute()["share_3"]) == 1
