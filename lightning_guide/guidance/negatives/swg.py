"""Windows over a picture: n x n overlapping crops, and the average of what is said about each pixel.

Sliding-window guidance (SWG): the negative sees the picture through windows, so that it knows less of the whole.

Kaiser et al. 2024, "The Unreasonable Effectiveness of Guidance for Diffusion Models",
https://arxiv.org/abs/2411.10257. D_swg is the average, over n x n overlapping crops of x, of D(crop). SWG is
D + (w - 1) (D - D_swg); the masked form (M-SWG) multiplies the difference by M, 1 at the pixels that more than one crop
covers. The paper's weights are w - 1.

A crop counts as one evaluation although it has but a part of the pixels: n = 2 with crops of 5/8 makes 5 evaluations
in all, at the cost of 1 + 4 (5/8)^2 = 2.6 of full size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Models, Predict, Prediction, Trajectory
from lightning_guide.guidance.base import Guidance, Main
from lightning_guide.guidance.branches import NegativeOfPrediction, PredictionNegative
from lightning_guide.guidance.combinations.base import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.schedules import WeightSchedule
from lightning_guide.preconditioning import Network

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


Window = tuple[slice, slice]


"""(rows, columns)."""


def windows(height: int, width: int, *, fraction: float, count: int) -> list[Window]:
    """`count` x `count` windows over a picture, each of `fraction` of its sides.

    A window has k = round(fraction height) rows; the i-th begins at row round(i (height - k) / (count - 1)). The same
    holds for columns. Windows that coincide are listed once.

    Raises:
        ValueError: if they leave gaps.
    """
    axes = []
    for side in (height, width):
        k = round(fraction * side)
        if k * count < side:
            raise ValueError(
                f"{count} windows of {k} pixels leave gaps on a side of {side}; "
                f"expected windows of {-(-side // count)} pixels or more"
            )
        starts = sorted({round(i * (side - k) / (count - 1)) for i in range(count)})
        axes.append([slice(start, start + k) for start in starts])
    return [(rows, columns) for rows in axes[0] for columns in axes[1]]


def window_counts(places: Sequence[Window], like: Tensor) -> Tensor:
    """How many windows hold each pixel, `(1, 1, H, W)`, for pictures `like` (B, C, H, W)."""
    count = like.new_zeros(1, 1, *like.shape[2:])
    for rows, columns in places:
        count[..., rows, columns] += 1
    return count


def overlap_average(parts: Sequence[Tensor], places: Sequence[Window], like: Tensor) -> Tensor:
    """`(B, C, H, W)`, shaped `like` this picture, from its windows `parts` (B, C, k, k'), averaged on overlaps."""
    total = torch.zeros_like(like, dtype=parts[0].dtype)
    for part, (rows, columns) in zip(parts, places, strict=True):
        total[..., rows, columns] += part
    return total / window_counts(places, total)


class SlidingWindow(Guidance):
    """D_swg: n x n crops are denoised one after the other and averaged where they overlap. D itself at crop = 1.

    Needs pictures (C, H, W) and networks that take other sizes than they were made for.
    """

    def __init__(self, *, crop: float = 5 / 8, n: int = 2, positive: Denoiser | None = None) -> None:
        """`crop`: sides of a window as a fraction of those of x, rounded to pixels; `n` windows along either side.

        The network must take crops of that size: multiples of its total stride or patch size. `positive` is the model;
        default: the one under evaluation.

        Raises:
            ValueError: if `crop` is not in (0, 1], or `n` is less than 2.
        """
        super().__init__()
        if not 0 < crop <= 1 or n < 2:
            raise ValueError(f"sliding windows need a crop in (0, 1] and n >= 2, got {crop} and {n}")
        self.crop, self.n = crop, n
        self.positive = positive if positive is not None else Main()

    def resolve(self, models: Models) -> Denoiser:
        """As `Guidance.resolve`; a model that takes no crops is refused.

        Raises:
            ValueError: saying why it takes none.
        """
        resolved = super().resolve(models)
        assert isinstance(resolved, SlidingWindow)
        resolved._check_crops()
        return resolved

    def start(self, trajectory: Trajectory) -> Predict:
        """The windowed denoiser of one trajectory.

        Raises:
            ValueError: as `resolve`.
        """
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
        """The windows over a picture of `shape` (*, H, W).

        Raises:
            ValueError: if they leave gaps.
        """
        return windows(shape[-2], shape[-1], fraction=self.crop, count=self.n)

    def _check_crops(self) -> None:
        """Refuses a model that does not work on pictures of any size."""
        shape = self.positive.data_shape
        if len(shape) != 3:
            raise ValueError(
                f"sliding windows need pictures (channels, height, width); this model works on x of shape {shape}"
            )
        for part in self.positive.modules():
            if isinstance(part, Network) and not part.resizable:
                raise ValueError(
                    f"sliding windows need a network that takes crops; "
                    f"{type(part).__name__} takes x of shape {tuple(part.data_shape)} alone"
                )
        self.places(shape)


class MaskedSlidingWindow(PredictionNegative):
    """M D_swg + (1 - M) D, M being 1 at pixels that two crops or more cover: what M-SWG pushes away from.

    n x n evaluations on crops, besides the positive's. D itself at crop = 1.
    """

    def __init__(self, *, crop: float = 5 / 8, n: int = 2, positive: Denoiser | None = None) -> None:
        """`crop`, `n` and `positive` as in `SlidingWindow`."""
        super().__init__()
        self.positive = positive if positive is not None else Main()
        self.window = SlidingWindow(crop=crop, n=n, positive=self.positive)

    def start_from_prediction(self, model: Denoiser, trajectory: Trajectory) -> tuple[Denoiser, NegativeOfPrediction]:
        """The model as it is, and the negative.

        Raises:
            ValueError: as `SlidingWindow.resolve`.
        """
        window = self.window.start(trajectory)

        def react(pos: Prediction, x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            neg = window(x, sigma, condition)
            mask = window_counts(self.window.places(x.shape), x) > 1
            clean = torch.where(mask, neg.clean, pos.clean)
            if neg.noise is None and pos.noise is None:
                return Prediction(clean)
            return Prediction(clean, torch.where(mask, neg.direction(x, sigma), pos.direction(x, sigma)))

        return model, react


class SlidingWindowGuidance(Guided):
    """D + (w - 1) (D - D_swg). One evaluation and n x n on crops; needs pictures and a network that takes crops."""

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
    """D + (w - 1) M (D - D_swg). One evaluation and n x n on crops; needs pictures and a network that takes crops."""

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
