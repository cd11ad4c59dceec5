"""A small plain classifier of pictures: its features serve a Frechet distance, its answers the class agreement.

A small classifier of noisy pictures that knows the noise level: the guide of classifier guidance.

A small classifier of pictures by attention between patches: it shares no layer with `SmallClassifier`.

Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929. Made to judge what a convolutional network has guided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import expand
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Classifier", "NoisyClassifier", "PatchClassifier", "SmallClassifier"]


_GROUPS = 8


class Classifier(HasRecipe, nn.Module):
    """Base of classifiers of pictures, clean or noisy.

    Attributes:
        data_shape: (C, H, W) of one picture.
        num_classes: number of classes.
    """

    data_shape: tuple[int, ...]
    num_classes: int


class SmallClassifier(Classifier):
    """Convolutions with group normalization, halving the size between blocks; then a hidden layer and the logits.

    Submodules: ``blocks`` (pictures to channels), ``hidden`` (mean over pixels to features), ``head`` (to logits).
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        *,
        num_classes: int,
        widths: Sequence[int] = (32, 64, 64),
        num_features: int = 64,
    ) -> None:
        """Builds the network; weights come from the global generator.

        Args:
            data_shape: (C, H, W) of one picture.
            num_classes: number of classes.
            widths: channels of each block, multiples of 8; the size is halved after each block but the last.
            num_features: width of the penultimate layer.

        Raises:
            ValueError: if there are fewer than two classes, the widths do not fit, or nothing is left of the picture.
        """
        super().__init__()
        if len(data_shape) != 3 or num_classes < 2:
            raise ValueError(
                "SmallClassifier needs data_shape (C, H, W) and num_classes >= 2, "
                f"got {tuple(data_shape)} and {num_classes}"
            )
        if not widths or any(width < 1 or width % _GROUPS for width in widths):
            raise ValueError(f"widths of SmallClassifier must be positive multiples of {_GROUPS}, got {list(widths)}")
        channels, *size = data_shape
        if min(size) < 2 ** (len(widths) - 1):
            raise ValueError(f"{len(widths)} blocks halve {size[0]}x{size[1]} pixels down to nothing: use fewer widths")
        self.data_shape = tuple(data_shape)
        self.num_classes = num_classes
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            layers += [nn.MaxPool2d(2)] if i else []
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(_GROUPS, width), nn.SiLU()]
            channels = width
        self.blocks = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Linear(channels, num_features), nn.SiLU())
        self.head = nn.Linear(num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate layer (B, num_features) of `x` (B, C, H, W), float in [-1, 1]: x = pixel / 127.5 - 1.

        Raises:
            ValueError: if the pictures have another shape than `data_shape`.
        """
        if tuple(x.shape[1:]) != self.data_shape:
            raise ValueError(f"pictures have shape {tuple(x.shape[1:])}; this classifier expects {self.data_shape}")
        return self.hidden(self.blocks(x).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """Class logits (B, num_classes) of `x` (B, C, H, W), float in [-1, 1].

        Raises:
            ValueError: if the pictures have another shape than `data_shape`.
        """
        return self.head(self.features(x))


_GROUPS = 8


_FREQUENCIES = 16


class NoisyClassifier(Classifier):
    """Logits of p(y | x, sigma) for x = x_0 + sigma n, as for classifier guidance.

    Dhariwal and Nichol 2021, https://arxiv.org/abs/2105.05233, section 4. The input is scaled by
    1 / sqrt(sigma^2 + sigma_data^2); cosines and sines of ln(sigma) / 4 give each block a scale and a shift of its
    normalized channels.
    """

    frequencies: Tensor

    def __init__(
        self,
        data_shape: Sequence[int],
        *,
        num_classes: int,
        widths: Sequence[int] = (32, 64, 64),
        num_features: int = 64,
        sigma_data: float = 0.5,
    ) -> None:
        """As `SmallClassifier`; `sigma_data` is the standard deviation of the data.

        Raises:
            ValueError: as `SmallClassifier`.
        """
        super().__init__()
        if len(data_shape) != 3 or num_classes < 2 or not widths or any(width % _GROUPS for width in widths):
            raise ValueError(
                f"NoisyClassifier needs data_shape (C, H, W), num_classes >= 2 and widths in multiples of {_GROUPS}, "
                f"got {tuple(data_shape)}, {num_classes} and {list(widths)}"
            )
        self.data_shape, self.num_classes, self.sigma_data = tuple(data_shape), num_classes, sigma_data
        sizes = [data_shape[0], *widths]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(sizes, widths, strict=False))
        self.norms = nn.ModuleList(nn.GroupNorm(_GROUPS, width) for width in widths)
        self.modulations = nn.ModuleList(nn.Linear(2 * _FREQUENCIES, 2 * width) for width in widths)
        self.hidden = nn.Linear(widths[-1], num_features)
        self.head = nn.Linear(num_features, num_classes)
        self.register_buffer("frequencies", math.pi * 2 ** torch.linspace(-2, 3, _FREQUENCIES))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Class logits (B, K) of `x` (B, C, H, W) at noise level `sigma` (B,) or ().

        Raises:
            ValueError: if the pictures have another shape than `data_shape`.
        """
        if tuple(x.shape[1:]) != self.data_shape:
            raise ValueError(f"pictures have shape {tuple(x.shape[1:])}; this classifier expects {self.data_shape}")
        phase = (sigma.log() / 4).expand(len(x))[:, None] * self.frequencies
        level = torch.cat([phase.cos(), phase.sin()], 1)
        h = x * (expand(sigma, x) ** 2 + self.sigma_data**2).rsqrt()
        for i, (convolution, norm, modulation) in enumerate(
            zip(self.convolutions, self.norms, self.modulations, strict=True)
        ):
            h = nn.functional.max_pool2d(h, 2) if i else h
            scale, shift = modulation(level)[..., None, None].chunk(2, 1)
            h = nn.functional.silu(norm(convolution(h)) * (1 + scale) + shift)
        logits: Tensor = self.head(nn.functional.silu(self.hidden(h.mean((2, 3)))))
        return logits


class PatchClassifier(Classifier):
    """Patches as tokens with learned positions, transformer blocks, the logits of their mean.

    Submodules: ``patches`` (pictures to tokens), ``blocks``, ``norm``, ``head`` (features to logits).
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        *,
        num_classes: int,
        patch_size: int = 2,
        channels: int = 64,
        depth: int = 3,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        """Builds the network; weights come from the global generator.

        Args:
            data_shape: (C, H, W) of one picture.
            num_classes: number of classes.
            patch_size: side of a patch, divides the sides of the picture.
            channels: width of the tokens.
            depth: number of blocks.
            heads: of attention in each block, divide the channels.
            dropout: probability in the blocks, while training.

        Raises:
            ValueError: if the patches do not fit the picture, the heads the channels, or there is but one class.
        """
        super().__init__()
        if len(data_shape) != 3 or any(side % patch_size for side in data_shape[1:]) or num_classes < 2:
            raise ValueError(
                f"PatchClassifier needs data_shape (C, H, W) with sides in multiples of {patch_size} and "
                f"num_classes >= 2, got {tuple(data_shape)} and {num_classes}"
            )
        if channels % heads:
            raise ValueError(f"PatchClassifier: {channels} channels must be a multiple of {heads} heads")
        self.data_shape, self.num_classes = tuple(data_shape), num_classes
        C, height, width = self.data_shape
        self.patches = nn.Conv2d(C, channels, patch_size, stride=patch_size)
        self.positions = nn.Parameter(0.02 * torch.randn(height * width // patch_size**2, channels))
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    channels, heads, 2 * channels, dropout, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits (B, num_classes) of `x` (B, C, H, W), float in [-1, 1].

        Raises:
            ValueError: if the pictures have another shape than `data_shape`.
        """
        if tuple(x.shape[1:]) != self.data_shape:
            raise ValueError(f"pictures have shape {tuple(x.shape[1:])}; this classifier expects {self.data_shape}")
        tokens = self.patches(x).flatten(2).mT + self.positions  # (B, patches, channels)
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits
