"""Small image classifiers: convolutional, conditioned on the noise level, and a vision transformer (ViT)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import expand
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Classifier", "NoisyClassifier", "PatchClassifier", "SmallClassifier"]


_GROUPS = 8  # of group normalization
_FREQUENCIES = 16  # of the noise level


class Classifier(HasRecipe, nn.Module):
    """Base of classifiers of clean or noisy images.

    Attributes:
        data_shape: (C, H, W) of one image.
        num_classes: number of classes.
    """

    data_shape: tuple[int, ...]
    num_classes: int


class SmallClassifier(Classifier):
    """Small convolutional classifier, whose features serve Frechet distances and whose logits class accuracy.

    Convolutions with group normalization, halving the size between blocks, then a hidden layer and the logits.
    Submodules: ``blocks`` (images to channels), ``hidden`` (mean over pixels to features), ``head`` (to logits).
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        *,
        num_classes: int,
        widths: Sequence[int] = (32, 64, 64),
        num_features: int = 64,
    ) -> None:
        """Build the network; weights come from the global generator.

        Args:
            data_shape: (C, H, W) of one image.
            num_classes: number of classes.
            widths: channels of each block, multiples of 8; the size is halved after each block but the last.
            num_features: width of the penultimate layer.

        Raises:
            ValueError: if there are fewer than two classes, the widths do not fit, or the image is too small for them.
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
        """Return the penultimate layer (B, num_features) for `x` (B, C, H, W), float in [-1, 1]: x = pixel / 127.5 - 1.

        Raises:
            ValueError: if the images have another shape than `data_shape`.
        """
        if tuple(x.shape[1:]) != self.data_shape:
            raise ValueError(f"images have shape {tuple(x.shape[1:])}; this classifier expects {self.data_shape}")
        return self.hidden(self.blocks(x).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """Return class logits (B, num_classes) for `x` (B, C, H, W), float in [-1, 1].

        Raises:
            ValueError: if the images have another shape than `data_shape`.
        """
        return self.head(self.features(x))


class NoisyClassifier(Classifier):
    """Noise-conditional classifier p(y | x, sigma) for x = x_0 + sigma n, the guide of classifier guidance.

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
        """Build the network as `SmallClassifier`; `sigma_data` is the standard deviation of the data.

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
        """Return class logits (B, K) for `x` (B, C, H, W) at noise level `sigma` (B,) or ().

        Raises:
            ValueError: if the images have another shape than `data_shape`.
        """
        if tuple(x.shape[1:]) != self.data_shape:
            raise ValueError(f"images have shape {tuple(x.shape[1:])}; this classifier expects {self.data_shape}")
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
    """Vision transformer (ViT): patches as tokens with learned positions, transformer blocks, logits of their mean.

    Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929. It shares no layer with `SmallClassifier`, so that it can
    evaluate samples guided by a convolutional network.

    Submodules: ``patches`` (images to tokens), ``blocks``, ``norm``, ``head`` (features to logits).
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
        """Build the network; weights come from the global generator.

        Args:
            data_shape: (C, H, W) of one image.
            num_classes: number of classes.
            patch_size: side of a patch, a divisor of the sides of the image.
            channels: width of the tokens.
            depth: number of blocks.
            heads: attention heads of each block, a divisor of the channels.
            dropout: probability in the blocks during training.

        Raises:
            ValueError: if the patches do not fit the image or the heads the channels, or there is only one class.
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
        """Return class logits (B, num_classes) for `x` (B, C, H, W), float in [-1, 1].

        Raises:
            ValueError: if the images have another shape than `data_shape`.
        """
        if tuple(x.shape[1:]) != self.data_shape:
            raise ValueError(f"images have shape {tuple(x.shape[1:])}; this classifier expects {self.data_shape}")
        tokens = self.patches(x).flatten(2).mT + self.positions  # (B, patches, channels)
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits
