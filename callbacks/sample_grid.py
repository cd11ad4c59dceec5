"""Sample grids: the same few samples of every evaluation, again and again while training goes on."""

from __future__ import annotations

import math
import re
from pathlib import Path

import lightning.pytorch as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from callbacks.evaluation_samples import EvaluationSamples
from callbacks.png import add_picture, render, write_png
from lightning_guide.data import DataView
from lightning_guide.evaluation.loop import DrawnSamples
from lightning_guide.modules.diffusion import DiffusionModule

__all__ = ["SampleGrid"]

SMALLEST_SIDE = 64  # pixels; smaller pictures are enlarged by a whole number
UNSAFE = r"[^\w.=+-]+"  # in file names


class SampleGrid(EvaluationSamples):
    """Draws the samples 0 ... `count` - 1 of each evaluation at the end of validation and test.

    Pictures become a grid, points a scatter plot of their first two coordinates on axes that hold the real data. Each
    goes to TensorBoard (`samples/<evaluation>`, at the global step) and to
    `<folder>/<fit, validate or test>-<images seen>-<evaluation>.png`.
    """

    def __init__(self, count: int = 64, *, columns: int = 8, folder: str | None = None) -> None:
        """`count` samples in rows of `columns`; `folder` is `grids` in the folder of the run if None.

        Raises:
            ValueError: if `count` or `columns` is below 1.
        """
        super().__init__(count)
        if columns < 1:
            raise ValueError(f"SampleGrid needs columns >= 1, got {columns}")
        self.columns, self.folder = columns, folder

    def draw(self, trainer: pl.Trainer, module: DiffusionModule, samples: dict[str, DrawnSamples]) -> None:
        """Logs and writes one picture for each evaluation."""
        folder = Path(trainer.default_root_dir) / "grids" if self.folder is None else Path(self.folder)
        assert trainer.state.fn is not None
        stage = f"{trainer.state.fn.value}-{module.images_seen}"
        real: DataView = trainer.datamodule  # type: ignore[attr-defined]
        for name, drawn in samples.items():
            if drawn.x.ndim == 2:
                picture = _scatter(drawn.x, f"{name}, {module.images_seen:,} images seen", _limits(real))
            else:
                picture = _grid(drawn.x, self.columns)
            add_picture(trainer, f"samples/{name}", picture)
            write_png(folder / f"{stage}-{re.sub(UNSAFE, '_', name)}.png", picture)


def _grid(x: Tensor, columns: int) -> Tensor:
    """Pictures `x` (B, C, H, W) side by side, (3, height, width) uint8, enlarged if they are tiny.

    Of data that is no picture, such as latents, the first three channels are shown, from the smallest to the largest
    value.
    """
    if x.shape[1] not in (1, 3):
        x = x[:, :3] if x.shape[1] > 3 else x[:, :1]
    if x.dtype != torch.uint8:
        x = x.float().nan_to_num()
        low, high = x.min(), x.max()
        x = ((x - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8)
    factor = math.ceil(SMALLEST_SIDE / min(x.shape[2:]))
    x = x.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    return make_grid(x, nrow=columns, pad_value=255)


def _coordinates(x: Tensor) -> Tensor:
    """The first two coordinates (B, 2) of points (B, d); a single one is drawn against the sample's number."""
    return x[:, :2].float() if x.shape[1] > 1 else torch.stack([x[:, 0].float(), torch.arange(len(x)).float()], dim=1)


def _limits(real: DataView) -> tuple[Tensor, Tensor]:
    """Lowest and highest values (2,) on the axes: those of the first batch of real points, and some margin."""
    dots = _coordinates(next(iter(real.reference(torch.device("cpu")))).x)
    low, high = dots.amin(dim=0), dots.amax(dim=0)
    margin = (0.15 * (high - low)).clamp(min=1e-3)
    return low - margin, high + margin


def _scatter(x: Tensor, title: str, limits: tuple[Tensor, Tensor]) -> Tensor:
    """Points (B, d) as dots, (3, 600, 600) uint8; the title says how many lie outside."""
    (left, bottom), (right, top) = (limit.tolist() for limit in limits)
    dots = _coordinates(x)
    outside = int((~((dots > limits[0]) & (dots < limits[1])).all(dim=1)).sum())
    figure = Figure(figsize=(6, 6), dpi=100, layout="constrained")
    axes = figure.add_subplot(title=f"{title}, {outside} of {len(x)} points outside")
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal" if x.shape[1] > 1 else "auto")
    size = min(20.0, max(0.5, 4e4 / len(dots) ** 1.2))
    axes.scatter(dots[:, 0].numpy(), dots[:, 1].numpy(), s=size, linewidths=0, color="#0072B2")
    return render(figure)
