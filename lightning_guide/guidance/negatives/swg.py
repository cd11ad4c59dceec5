"""Sliding-window guidance (SWG): the negative denoises n x n overlapping crops, so that it lacks global context.

Kaiser et al. 2024, "The Unreasonable Effectiveness of Guidance for Diffusion Models",
https://arxiv.org/abs/2411.10257. D_swg is the average, over n x n overlapping crops of x, of D(crop). SWG is
D + (w - 1) (D - D_swg); the masked form (M-SWG) multiplies the difference by M, 1 at the pixels that more than one crop
covers. The paper's weights are w - 1.

A crop counts as one evaluation although it has only a part of the pixels: n = 2 with crops of 5/8 makes 5 evaluations
in all, at the cost of 1 + 4 (5/8)^2 = 2.6 of full size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Models, Predict, Prediction, Trajectory
from lightning_guide.guidance.base import Guidance, Main
from lightning_guide.guidance.branches import NegativeOfPrediction, PredictionNegative
from lightning_guide.guidance.combinations.base import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.schedules import WeightSchedule
from lightning_guide.network import Network

__all__ = [
    "MaskedSlidingWindow",
    "MaskedSlidingWindowGuidance",
    "SlidingWindow",
    "SlidingWindowGuidance",
    "Window",
    "window_counts",
    "overlap_average",
    "windows",
]


Window = tuple[slice, slice]  # (rows, columns)


def windows(height: int, width: int, *, fraction: float, count: int, stride: int = 1) -> list[Window]:
    """Return `count` x `count` windows over an image, each of `fraction` of its sides.

    A window has k = round(fraction height) rows, or the next multiple of `stride`; the i-th starts at row
    round(i (height - k) / (count - 1)). The same holds for columns. Windows that coincide are listed once.

    Raises:
        ValueError: if they leave gaps.
    """
    axes = []
    for side in (height, width):
        k = -(-round(fraction * side) // stride) * stride
        if k * count < side:
            raise ValueError(
                f"{count} windows of {k} pixels leave gaps on a side of {side}; "
                f"expected windows of {-(-side // count)} pixels or more"
            )
        starts = sorted({round(i * (side - k) / (count - 1)) for i in range(count)})
        axes.append([slice(start, start + k) for start in starts])
    return [(rows, columns) for rows in axes[0] for columns in axes[1]]


def window_counts(places: Sequence[Window], like: Tensor) -> Tensor:
    """Return the number of windows that hold each pixel, `(1, 1, H, W)`, for images `like` (B, C, H, W)."""
    count = like.new_zeros(1, 1, *like.shape[2:])
    for rows, columns in places:
        count[..., rows, columns] += 1
    return count


def overlap_average(parts: Sequence[Tensor], places: Sequence[Window], like: Tensor) -> Tensor:
    """Return the image (B, C, H, W), shaped as `like`, from its windows `parts` (B, C, k, k'), averaged on overlaps."""
    total = torch.zeros_like(like, dtype=parts[0].dtype)
    for part, (rows, columns) in zip(parts, places, strict=True):
        total[..., rows, columns] += part
    return total / window_counts(places, total)


class SlidingWindow(Guidance):
    """SWG negative D_swg: n x n crops, denoised one by one and averaged where they overlap. D itself at crop = 1.

    It needs images (C, H, W) and a network that takes other sizes than its own.
    """

    def __init__(self, *, crop: float = 5 / 8, n: int = 2, positive: Denoiser | None = None) -> None:
        """`crop`: sides of a window as a fraction of those of x; `n` windows along either side.

        They are rounded to pixels, and up to multiples of the total stride or patch size of the network. `positive` is
        the model; default: the one under evaluation.

        Raises:
            ValueError: if `crop` is not in (0, 1], or `n` is less than 2.
        """
        super().__init__()
        if not 0 < crop <= 1 or n < 2:
            raise ValueError(f"sliding windows need a crop in (0, 1] and n >= 2, got {crop} and {n}")
        self.crop, self.n = crop, n
        self.positive = positive if positive is not None else Main()

    def resolve(self, models: Models) -> Denoiser:
        """Return a copy on real models; a model that does not take crops is refused.

        Raises:
            ValueError: if the data are not images, or the network takes one size only.
        """
        resolved = super().resolve(models)
        assert isinstance(resolved, SlidingWindow)
        resolved._check_crops()
        return resolved

    def start(self, trajectory: Trajectory) -> Predict:
        """Return the windowed denoiser of one trajectory."""
        self._check_crops()
        model = self.positive.start(trajectory)

        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            places = self.places(x.shape)
            crops = [x[..., rows, columns].contiguous() for rows, columns in places]
            parts = [model(crop, sigma, condition) for crop in crops]
            clean = overlap_average([part.clean for part in parts], places, x)
            if all(part.noise is None for part in parts):
                return Prediction(clean)
            noises = [part.direction(crop, sigma) for part, crop in zip(parts, crops, strict=True)]
            return Prediction(clean, overlap_average(noises, places, x))

        return predict

    def places(self, shape: Sequence[int]) -> list[Window]:
        """Return the windows over an image of `shape` (*, H, W)."""
        stride = math.lcm(*(part.stride for part in self.positive.modules() if isinstance(part, Network)))
        return windows(shape[-2], shape[-1], fraction=self.crop, count=self.n, stride=stride)

    def _check_crops(self) -> None:
        """Refuse a model that does not work on images of any size."""
        shape = self.positive.data_shape
        if len(shape) != 3:
            raise ValueError(
                f"sliding windows need images (channels, height, width); this model works on x of shape {shape}"
            )
        for part in self.positive.modules():
            if isinstance(part, Network) and not part.resizable:
                raise ValueError(
                    f"sliding windows need a network that takes crops; "
                    f"{type(part).__name__} only takes x of shape {tuple(part.data_shape)}"
                )
        self.places(shape)


class MaskedSlidingWindow(PredictionNegative):
    """M-SWG negative M D_swg + (1 - M) D, M = 1 at pixels that two crops or more cover.

    It takes n x n evaluations on crops, in addition to that of the positive. D itself at crop = 1.
    """

    def __init__(self, *, crop: float = 5 / 8, n: int = 2, positive: Denoiser | None = None) -> None:
        """`crop`, `n` and `positive` as in `SlidingWindow`."""
        super().__init__()
        self.positive = positive if positive is not None else Main()
        self.window = SlidingWindow(crop=crop, n=n, positive=self.positive)

    def start_from_prediction(self, model: Denoiser, trajectory: Trajectory) -> tuple[Denoiser, NegativeOfPrediction]:
        """Return the model itself, and the negative."""
        window = self.window.start(trajectory)

        def negative(pos: Prediction, x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            neg = window(x, sigma, condition)
            mask = window_counts(self.window.places(x.shape), x) > 1
            clean = torch.where(mask, neg.clean, pos.clean)
            if neg.noise is None and pos.noise is None:
                return Prediction(clean)
            return Prediction(clean, torch.where(mask, neg.direction(x, sigma), pos.direction(x, sigma)))

        return model, negative


class SlidingWindowGuidance(Guided):
    """SWG, D + (w - 1) (D - D_swg). One evaluation and n x n on crops; needs images and a network that takes crops."""

    def __init__(
        self,
        weight: float | WeightSchedule = 1.2,
        *,
        crop: float = 5 / 8,
        n: int = 2,
        positive: Denoiser | None = None,
        combination: Combination | None = None,
    ) -> None:
        """`crop` and `n` as in `SlidingWindow`; the paper's weights w - 1 are 0.2 to 1.5."""
        negative = SlidingWindow(crop=crop, n=n, positive=positive)
        super().__init__([negative], [weight], positive=positive, combination=combination)


class MaskedSlidingWindowGuidance(Guided):
    """M-SWG, D + (w - 1) M (D - D_swg). One evaluation and n x n on crops; needs images, a network that takes crops."""

    def __init__(
        self,
        weight: float | WeightSchedule = 1.3,
        *,
        crop: float = 5 / 8,
        n: int = 2,
        positive: Denoiser | None = None,
        combination: Combination | None = None,
    ) -> None:
        """`crop` and `n` as in `SlidingWindow`; the paper's weights w - 1 are 0.14 to 0.3 on top of other guidances."""
        positive = positive if positive is not None else Main()
        negative = MaskedSlidingWindow(crop=crop, n=n, positive=positive)
        super().__init__([negative], [weight], positive=positive, combination=combination)
