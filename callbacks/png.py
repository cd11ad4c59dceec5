"""Pictures as PNG files written at once, and what is logged of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.destinations import boards
from lightning_guide.atomic_file import atomic
from lightning_guide.sample_file import encode_png

__all__ = ["add_picture", "render", "write_png"]


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


def add_picture(trainer: Trainer, tag: str, picture: Tensor) -> None:
    """Logs `picture` (3, H, W), uint8, at the global step to every TensorBoard logger there is."""
    for board in boards(trainer):
        board.experiment.add_image(tag, picture, trainer.global_step)
