"""Output of callbacks: folders of a run, PNG files, image grids, scatter plots, and the prompts of samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch import Trainer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from callbacks.captions import caption_strips
from callbacks.loggers import log_image
from lightning_guide.data import DataInterface, data_of
from lightning_guide.utils.files import atomic
from lightning_guide.utils.images import encode_png
from lightning_guide.utils.needs import unwritable

__all__ = [
    "output_folder",
    "limits_of",
    "prompts_of",
    "image_grid",
    "render",
    "save_image",
    "scatter",
    "unwritable_output",
    "write_png",
]


def output_folder(trainer: pl.Trainer, folder: str | None, *, default: str = "report") -> Path:
    """Return `folder`, or `default` in the run folder if None."""
    return Path(trainer.default_root_dir) / default if folder is None else Path(folder).expanduser()


def unwritable_output(trainer: pl.Trainer, callback: Any, *, default: str = "report") -> Iterator[str]:
    """Yield a sentence if process 0 cannot write to the output folder of `callback`, its attribute `folder`."""
    if trainer.is_global_zero:
        yield from unwritable(output_folder(trainer, callback.folder, default=default), type(callback).__name__)


def prompts_of(trainer: pl.Trainer, condition: Tensor) -> list[str] | None:
    """Return the texts of the prompts `condition` (B,), "" for -1; None without texts, or for a model of none."""
    denoiser = getattr(trainer.lightning_module, "denoiser", None)
    texts = data_of(trainer).prompt_texts if getattr(denoiser, "token_channels", 0) else None
    return None if texts is None else [texts[number] if number >= 0 else "" for number in condition.tolist()]


def write_png(path: Path, image: Tensor) -> None:
    """Write `image` (1 or 3, H, W), uint8, to `path` atomically; create the folder.

    Raises:
        ValueError: if the shape or type of `image` is different.
    """
    data = encode_png(image)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path, durable=False) as temporary:
        temporary.write_bytes(data)


def render(figure: Figure) -> Tensor:
    """Return the pixels (3, H, W), uint8, of a matplotlib figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.array(canvas.buffer_rgba())[:, :, :3]).permute(2, 0, 1)


def save_image(trainer: Trainer, image: Tensor, path: Path, *, tag: str) -> None:
    """Write `image` (3, H, W), uint8, to the PNG file `path` and log it as `tag`, at `log_step`."""
    write_png(path, image)
    log_image(trainer, tag, image)


# Pixels: smaller images are enlarged to this by an integer factor, without and with captions.
SMALLEST_SIDE, READABLE_SIDE = 64, 128


def image_grid(x: Tensor, columns: int, *, captions: Sequence[str] | None = None) -> Tensor:
    """Return images `x` (B, C, H, W) side by side, (3, height, width) uint8, enlarged if they are tiny.

    Of other data, such as latents, the first three channels are shown. Values that are not uint8 are scaled from the
    smallest to the largest. With `captions`, a text for each image, the text is written under it.
    """
    if x.shape[1] not in (1, 3):
        x = x[:, :3] if x.shape[1] > 3 else x[:, :1]
    if x.dtype != torch.uint8:
        x = x.float().nan_to_num()
        low, high = x.min(), x.max()
        x = ((x - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8)
    factor = math.ceil((READABLE_SIDE if captions else SMALLEST_SIDE) / min(x.shape[2:]))
    x = x.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    if captions:
        strips = caption_strips(captions, x.shape[3])
        x = torch.cat([x.cpu(), strips.expand(-1, x.shape[1], -1, -1)], dim=2)
    return make_grid(x, nrow=columns, pad_value=255)


def _coordinates(x: Tensor) -> Tensor:
    """Return the first two coordinates (B, 2) of points (B, d); for d = 1 the second is the sample's number."""
    return x[:, :2].float() if x.shape[1] > 1 else torch.stack([x[:, 0].float(), torch.arange(len(x)).float()], dim=1)


def limits_of(real: DataInterface) -> tuple[Tensor, Tensor]:
    """Return the lower and upper axis limits (2,): the range of the first batch of real points, plus a margin."""
    dots = _coordinates(next(iter(real.reference(torch.device("cpu")))).x)
    low, high = dots.amin(dim=0), dots.amax(dim=0)
    margin = (0.15 * (high - low)).clamp(min=1e-3)
    return low - margin, high + margin


def scatter(x: Tensor, title: str, limits: tuple[Tensor, Tensor]) -> Tensor:
    """Draw points (B, d) as dots, (3, 600, 600) uint8; the number of points outside is added to the title."""
    (left, bottom), (right, top) = (limit.tolist() for limit in limits)
    dots = _coordinates(x)
    outside = int((~((dots > limits[0]) & (dots < limits[1])).all(dim=1)).sum())
    figure = Figure(figsize=(6, 6), dpi=100, layout="constrained")
    axes = figure.add_subplot(title=f"{title}, {outside} of {len(x)} points outside")
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal" if x.shape[1] > 1 else "auto")
    size = min(20.0, max(0.5, 4e4 / len(dots) ** 1.2))
    axes.scatter(dots[:, 0].numpy(), dots[:, 1].numpy(), s=size, linewidths=0, color="#0072B2")
    return render(figure)
