"""Aesthetic score, ImageReward and HPS: a head in a file, and stubs of the packages, of their shape alone."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_guide.data import Batch
from lightning_guide.evaluation import HPS, AestheticScore, ClipFeatures, ImageReward, PackageScore
from tests.tiny_clip import write_clip

WORDS = ["a cat", "a small dog"]


def brightness(images: list[Any], prompt: str) -> list[float]:
    """Return a score of PIL images that depends on the prompt."""
    return [float(np.asarray(image).mean()) * len(prompt) for image in images]


class Stub(nn.Module):
    """A model as the package ImageReward returns it."""

    def score(self, prompt: str, images: list[Any]) -> Any:
        """Return a number for one image, else a list."""
        found = brightness(images, prompt)
        return found[0] if len(found) == 1 else found


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stubs of both packages."""
    reward, hps = ModuleType("ImageReward"), ModuleType("hpsv2")
    reward.load = lambda name, device: Stub()  # type: ignore[attr-defined]
    hps.score = lambda images, prompt, hps_version: brightness(images, prompt)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ImageReward", reward)
    monkeypatch.setitem(sys.modules, "hpsv2", hps)


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
    head = nn.Sequential(nn.Linear(16, 8), nn.Dropout(), nn.Linear(8, 1)).eval()
    torch.save(head.state_dict(), tmp_path / "head.pth")
    metric = AestheticScore(extractor, str(tmp_path / "head.pth"))
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
