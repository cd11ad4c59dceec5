"""Heads of reward networks: a random one, and layers out of a file.

Reward networks: a backbone that sees the picture, and a head that gives a number.

Guo et al. 2024, https://arxiv.org/abs/2404.14743, take ResNet-18 with ImageNet weights and a random linear head that is
never trained. Aesthetics predictors are heads, trained by others, on CLIP embeddings.

An objective of pictures as an objective of their latents: the gradient runs through the decoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_guide.objectives.objective import Objective
from lightning_guide.pretrained.backbones import Backbone
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Decoded", "FileHead", "Head", "RandomHead", "Reward"]


class Head(HasRecipe, nn.Module, ABC):
    """From features (B, F) to rewards (B,)."""

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Rewards (B,) of `features` (B, F)."""


class RandomHead(Head):
    """The synthetic reward of the paper: an untrained linear layer, weights and bias uniform on +-1 / sqrt(F)."""

    def __init__(self, seed: int = 0) -> None:
        """`seed` of the weights, which depend on it and on F alone."""
        super().__init__()
        self.seed = seed

    def forward(self, features: Tensor) -> Tensor:
        """w^T features + b, (B,)."""
        width = features.shape[1]
        draws = torch.rand(width + 1, generator=torch.Generator().manual_seed(self.seed)) * 2 - 1
        weights = (draws / width**0.5).to(features)
        return features @ weights[:-1] + weights[-1]


class FileHead(Head):
    """Linear layers out of a safetensors file, one after the other, with no activation between them.

    The file holds `NAME.weight` (out, in) and perhaps `NAME.bias` (out,), in the order of the names with their numbers
    read as numbers (`layers.2` before `layers.10`); the last layer has one output.
    """

    def __init__(self, path: str) -> None:
        """`path` of the file.

        Raises:
            ValueError: if it cannot be read, or its layers do not follow one another down to one number.
        """
        super().__init__()
        self.path = path
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"the head {path} cannot be read ({error}); expected a safetensors file") from None
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
        """Rewards (B,).

        Raises:
            ValueError: if the features have another width than the first layer expects.
        """
        wanted = self.layers[0].in_features
        if features.shape[1] != wanted:
            raise ValueError(f"the head {self.path} takes {wanted} features, the backbone gives {features.shape[1]}")
        return self.layers(features).squeeze(1)


class Reward(Objective):
    """head(backbone((x + 1) / 2 clamped to [0, 1])), as in the paper.

    The backbone normalizes as in its own training; the published experiment takes CLIP's mean and deviation instead.
    """

    def __init__(self, backbone: Backbone, head: Head) -> None:
        """`head` on the features of `backbone`."""
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor:
        """Rewards (B,) of pictures `x` (B, 1 or 3, H, W) in [-1, 1].

        Raises:
            ValueError: if x are no pictures.
        """
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"a reward network takes pictures (B, 1 or 3, H, W), got {tuple(x.shape)}")
        return self.head(self.backbone(((x + 1) / 2).clamp(0, 1)))


class Decoded(Objective):
    """f(decoder(z)): linearized at the latents z of a sample, one pass through the decoder a round.

    The paper linearizes at the picture instead and passes the decoder at each step: `LookAhead(decoder=...)`.
    """

    def __init__(self, objective: Objective, decoder: nn.Module) -> None:
        """`objective` of what `decoder` makes of latents; its parameters get no gradients."""
        super().__init__()
        self.objective, self.decoder = objective, decoder.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """f (B,) of latents `x` (B, *)."""
        return self.objective.value(self.decoder(x))
