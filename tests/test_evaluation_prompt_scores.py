"""Aesthetic score, ImageReward and HPS: a head in a file, and stubs of the packages, of their shape alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lightning_guide.data import Batch
from lightning_guide.evaluation import HPS, AestheticScore, ClipFeatures, ImageReward, PackageScore
from tests.tiny_clip import write_clip
from tests.tiny_scores import stub_packages, write_head

WORDS = ["a cat", "a small dog"]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_packages(monkeypatch)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("kind", [ImageReward, HPS])
def test_images_are_scored_with_the_prompt_of_their_label(kind: type[PackageScore]) -> None:
    metric = kind(WORDS)
    x, labels = torch.randint(256, (5, 3, 6, 7), dtype=torch.uint8), torch.tensor([1, 0, -1, 1, 1])
    with pytest.raises(ValueError, match=f"{kind.__name__} is not prepared"):
        metric.update(x, labels)
    metric.prepare([])
    clone: Any = metric.clone()
    clone.update(x[:2], labels[:2])
    clone.update(x[2:], labels[2:])
    means = x.double().mean((1, 2, 3))
    expected = (means[1] * len(WORDS[0]) + means[[0, 3, 4]].sum() * len(WORDS[1])) / 4
    assert clone.compute() == {kind.key: pytest.approx(expected.item(), rel=1e-9)}
    with pytest.raises(ValueError, match="has 2 prompts, and none for class 2"):
        clone.update(x, torch.tensor([0, 0, 2, 0, 0]))


@pytest.mark.parametrize(("kind", "package"), [(ImageReward, "ImageReward"), (HPS, "hpsv2")])
def test_an_absent_package_is_named_before_anything_is_drawn(
    kind: type[PackageScore], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    sample = Batch(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([0]))
    (sentence,) = kind(WORDS).missing(sample, 4, [])
    assert f"{kind.__name__} needs the package {package}, which is not installed" in sentence


def test_the_aesthetic_score_is_the_head_on_unit_embeddings(tmp_path: Path) -> None:
    extractor = ClipFeatures(*write_clip(tmp_path))
    head, path = write_head(tmp_path)
    metric = AestheticScore(extractor, path)
    x = torch.randint(256, (5, 3, 20, 20), dtype=torch.uint8)
    metric.prepare([])
    metric.update(x[:2])
    metric.update(x[2:])
    with torch.no_grad():
        expected = head(F.normalize(extractor(x), dim=1)).mean()
    assert metric.compute()["aesthetic"].item() == pytest.approx(expected.item(), rel=1e-5)
    torch.save({"weight": torch.zeros(1, 9)}, tmp_path / "narrow.pth")
    with pytest.raises(ValueError, match=r"narrow.pth takes 9 features, the backbone gives 16"):
        AestheticScore(extractor, str(tmp_path / "narrow.pth")).update(x)
    with pytest.raises(ValueError, match="there is no file absent.pth"):
        AestheticScore(extractor, "absent.pth")
