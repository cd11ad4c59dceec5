"""Stubs of the packages of image scores, of their shape alone, and files of small heads and random networks."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.functional.image.lpips import _LPIPS

__all__ = ["stub_packages", "write_alexnet", "write_head"]


def _brightness(images: list[Any], prompt: str) -> list[float]:
    """Return a score of PIL images that depends on the prompt."""
    return [float(np.asarray(image).mean()) * len(prompt) for image in images]


class _Reward(nn.Module):
    """A model as the package ImageReward returns it."""

    def score(self, prompt: str, images: list[Any]) -> Any:
        """Return a number for one image, else a list."""
        found = _brightness(images, prompt)
        return found[0] if len(found) == 1 else found


def stub_packages(patch: pytest.MonkeyPatch) -> None:
    """Put stubs of ImageReward and hpsv2, whose score is the brightness times the length of the prompt."""
    reward, hps = ModuleType("ImageReward"), ModuleType("hpsv2")
    reward.load = lambda name, device: _Reward()  # type: ignore[attr-defined]
    hps.score = lambda images, prompt, hps_version: _brightness(images, prompt)  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "ImageReward", reward)
    patch.setitem(sys.modules, "hpsv2", hps)


def write_head(folder: Path) -> tuple[nn.Module, str]:
    """Return a head on embeddings of 16 numbers and the file of its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = nn.Sequential(nn.Linear(16, 8), nn.Dropout(), nn.Linear(8, 1)).eval()
    torch.save(head.state_dict(), folder / "head.pth")
    return head, str(folder / "head.pth")


def write_alexnet(folder: Path) -> str:
    """Return a file of the layers of torchvision's AlexNet, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _LPIPS(pretrained=True, net="alex", pnet_rand=True)
    state = network.net.state_dict()
    named = {"features" + name[name.index(".") :]: 3 * value for name, value in state.items()}
    torch.save(named, folder / "alexnet.pth")
    return str(folder / "alexnet.pth")
