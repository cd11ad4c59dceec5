"""Where callbacks put what they make: a folder of the run, and TensorBoard.

Pictures as PNG files written at once, and what is logged of them.

Pictures of samples: images side by side, points as dots.
"""

from __future__ import annotations

import math
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from lightning_guide.data import DataInterface
from lightning_guide.utils.files import atomic
from lightning_guide.utils.images import encode_png

__all__ = [
    "log_image",
    "tensorboard_loggers",
    "output_folder",
    "limits_of",
    "image_grid",
    "render",
    "scatter",
    "write_png",
]


def output_folder(trainer: pl.Trainer, folder: str | None, *, default: str = "report") -> Path:
    """`folder`, or `default` in the folder of the run if None."""
    return Path(trainer.default_root_dir) / default if folder is None else Path(folder)


def tensorboard_loggers(trainer: pl.Trainer) -> list[TensorBoardLogger]:
    """Every TensorBoard logger there is."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def write_png(path: Path, picture: Tensor) -> None:
    """Writes `picture` (1 or 3, H, W), uint8, to `path` at once; makes the folder.

    Raises:
        ValueError: if it is no such picture.
    """
    data = encode_png(picture)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path, durable=False) as temporary:
        temporary.write_bytes(data)


def render(figure: Figure) -> Tensor:
    """The pixels (3, H, W), uint8, of a matplotlib figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.array(canvas.buffer_rgba())[:, :, :3]).permute(2, 0, 1)


def log_image(trainer: Trainer, tag: str, picture: Tensor) -> None:
    """Logs `picture` (3, H, W), uint8, at the global step to every TensorBoard logger there is."""
    for board in tensorboard_loggers(trainer):
        board.experiment.add_image(tag, picture, trainer.global_step)


SMALLEST_SIDE = 64  # pixels; smaller pictures are enlarged by a whole number


def image_grid(x: Tensor, columns: int) -> Tensor:
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


def limits_of(real: DataInterface) -> tuple[Tensor, Tensor]:
    """Lowest and highest values (2,) on the axes: those of the first batch of real points, and some margin."""
    dots = _coordinates(next(iter(real.reference(torch.device("cpu")))).x)
    low, high = dots.amin(dim=0), dots.amax(dim=0)
    margin = (0.15 * (high - low)).clamp(min=1e-3)
    return low - margin, high + margin


def scatter(x: Tensor, title: str, limits: tuple[Tensor, Tensor]) -> Tensor:
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
