"""Small substitutes for the networks of configs that guide images: face parsing, sketches, CLIP and classifiers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.tiny_clip import write_clip


class BiSeNet(nn.Module):
    """Returns several outputs, the first of them logits of `num_class` at full size."""

    def __init__(self, num_class: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, num_class, 3, padding=1), nn.Conv2d(3, num_class, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(x)


class Sketcher(nn.Module):
    """Returns one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).tanh()


def no_network() -> int:
    """Return a value that is not a network."""
    return 3


def write_face_networks(side: int) -> None:
    """Write what configs of faces expect, for images of `side` pixels, to the working folder, and register a CLIP."""
    for folder in ("weights", "data"):
        Path(folder).mkdir()
    torch.manual_seed(0)
    torch.save(BiSeNet(19).state_dict(), "weights/parsing_bisenet.pth")
    torch.save(Sketcher().state_dict(), "weights/face_sketch.pth")
    np.save("data/faces.npy", np.random.default_rng(0).uniform(-1, 1, (2, 3, side, side)).astype(np.float32))
    write_clip(Path())


def smaller(settings: Any) -> Any:
    """Return the settings of a config with small networks of random weights."""
    if isinstance(settings, list):
        return [smaller(each) for each in settings]
    if not isinstance(settings, dict):
        return settings
    new = {key: smaller(value) for key, value in copy.deepcopy(settings).items()}
    kind, options = str(new.get("class_path", "")).rpartition(".")[2], new.get("init_args", {})
    if kind == "TimmNetwork":
        options |= {"name": "test_resnet", "pretrained": False}
    elif kind == "TextMatch":
        options |= {"model": "tiny-test", "weights": None}
    elif kind == "NamedNetwork":
        options["name"] = "tests.face_networks." + options["name"].rpartition(".")[2]
        options |= {"size": 40} if options.get("size") else {}
    elif kind == "Augmented" or options.get("copies"):
        options["copies"] = 3
    elif kind == "Resized":
        options["size"] = 40
    elif kind == "TimeTravel":
        options["repeats"] = 2
    return new
