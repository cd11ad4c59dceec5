"""Reward networks: a backbone and a head, or any network with one output.

Guo et al. 2024, https://arxiv.org/abs/2404.14743, use ResNet-18 with ImageNet weights and a random linear head without
training. Aesthetics predictors are published heads on CLIP embeddings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lightning_guide.objectives.energy import Objective
from lightning_guide.pretrained.backbones import Backbone
from lightning_guide.pretrained.loading import read_tensors
from lightning_guide.pretrained.networks import GuideNetwork
from lightning_guide.seeds import check_seed
from lightning_guide.utils.devices import to_device
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["FileHead", "Head", "NetworkReward", "RandomHead", "Reward"]


class Head(HasRecipe, nn.Module, ABC):
    """Base of heads from features (B, F) to rewards (B,)."""

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Return rewards (B,) of `features` (B, F)."""


class RandomHead(Head):
    """Random linear head, the synthetic reward of the paper, with weights and bias uniform on +-1 / sqrt(F)."""

    def __init__(self, seed: int = 0) -> None:
        """Choose the `seed` of the weights, which depend only on it and F."""
        super().__init__()
        self.seed = check_seed(seed)

    def forward(self, features: Tensor) -> Tensor:
        """Return w^T features + b, (B,)."""
        width = features.shape[1]
        draws = torch.rand(width + 1, generator=torch.Generator().manual_seed(self.seed)) * 2 - 1
        weights = to_device((draws / width**0.5).to(features.dtype), features.device)
        return features @ weights[:-1] + weights[-1]


class FileHead(Head):
    """Head of linear layers from a file, without activations, such as a published aesthetics predictor.

    The file (safetensors, or torch without pickles) holds `NAME.weight` (out, in) and optionally `NAME.bias` (out,),
    ordered by name with numbers in numeric order (`layers.2` before `layers.10`). The last layer has one output.
    """

    def __init__(self, path: str) -> None:
        """Read the file `path`.

        Raises:
            ValueError: if it cannot be read, or its layers do not compose to one output.
        """
        super().__init__()
        self.path = path
        tensors = read_tensors(path, of="a head")
        if not isinstance(tensors, dict) or not all(isinstance(each, Tensor) for each in tensors.values()):
            raise ValueError(f"{path} holds no tensors by name; expected the state dict of linear layers")
        names = [name for name in tensors if name == "weight" or name.endswith(".weight")]
        names.sort(key=lambda name: [int(part) if part.isdigit() else part for part in name.split(".")])
        self.layers = nn.Sequential()
        widths: list[tuple[int, int]] = []
        for name in names:
            weight, bias = tensors[name], tensors.get(name.removesuffix("weight") + "bias")
            if weight.ndim != 2 or (widths and widths[-1][0] != weight.shape[1]):
                raise ValueError(f"{path}: {name} has shape {tuple(weight.shape)}; expected (out, in) after {widths}")
            widths.append((weight.shape[0], weight.shape[1]))
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
            self.layers.append(layer.requires_grad_(False))
        if not widths or widths[-1][0] != 1:
            raise ValueError(f"{path} holds layers of shapes {widths or 'none'}; expected the last to have one output")

    def forward(self, features: Tensor) -> Tensor:
        """Return rewards (B,).

        Raises:
            ValueError: if the features have another width than the first layer.
        """
        width = self.layers[0].in_features
        if features.shape[1] != width:
            raise ValueError(f"the head {self.path} takes {width} features, the backbone gives {features.shape[1]}")
        return self.layers(features).squeeze(1)


class Reward(Objective):
    """Reward network head(backbone((x + 1) / 2 clamped to [0, 1])), as in the paper.

    The backbone normalizes as in its own training; the published experiment uses CLIP's mean and deviation instead.
    """

    def __init__(self, backbone: Backbone, head: Head) -> None:
        """Take a `backbone` and a `head` on its features."""
        super().__init__()
        self.backbone, self.head = backbone, head

    def value(self, x: Tensor) -> Tensor:
        """Return rewards (B,) of images `x` (B, 1 or 3, H, W) in [-1, 1].

        Raises:
            ValueError: if `x` has another shape.
        """
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"a reward network takes images (B, 1 or 3, H, W), got {tuple(x.shape)}")
        return self.head(self.backbone(((x + 1) / 2).clamp(0, 1)))


class NetworkReward(Objective):
    """Reward of a network with one output, f(x) = network(x), such as a `NamedNetwork` by its class path."""

    def __init__(self, network: GuideNetwork) -> None:
        """Take a `network` from x (B, *) to (B,) or (B, 1), loaded at first use and frozen."""
        super().__init__()
        self.network = network

    def value(self, x: Tensor) -> Tensor:
        """Return rewards (B,) of `x` (B, *)."""
        output: Tensor = self.network(x)
        return output.squeeze(1) if output.ndim == 2 and output.shape[1] == 1 else output
