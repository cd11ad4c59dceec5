"""A small plain classifier of pictures: its features serve a Frechet distance, its answers the class agreement."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_guide.recipe import Recorded

__all__ = ["Classifier", "SmallClassifier"]

_GROUPS = 8


class Classifier(Recorded, nn.Module):
    """Base of classifiers of pictures, clean or noisy.

    Attributes:
        data_shape: (C, H, W) of one picture.
        num_classes: number of classes.
    """

    data_shape: tuple[int, ...]
    num_classes: int


class SmallClassifier(Classifier):
    """Convolutions with group normalisation, halving the size between blocks; then a hidden layer and the logits.

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
