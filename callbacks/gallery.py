"""Gallery: the same samples under every evaluation in one image, with NFE and time per sample."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from callbacks.base import EvaluationSamples
from callbacks.captions import caption_strips
from callbacks.output import image_grid, limits_of, output_folder, prompts_of, render, save_image, scatter
from lightning_guide.data import DataInterface, data_of
from lightning_guide.evaluation.sampling_loop import DrawnSamples
from lightning_guide.modules.diffusion import DiffusionModule

__all__ = ["Gallery"]


LABEL, LARGEST_SIDE = 192, 192  # pixels


class Gallery(EvaluationSamples):
    """Image of samples 0 ... `count` - 1: one row for each evaluation, one column for each sample.

    A row is labeled with the evaluation, its network calls per sample (NFE) and its milliseconds per sample, a column
    with the prompt of its samples, under the last row. Images larger than 192 pixels are shrunk. Points are drawn as
    one panel for each evaluation. Logged as `gallery` and written to `<folder>/gallery.png`.
    """

    default_folder = "gallery"

    def __init__(self, count: int = 12, *, folder: str | None = None) -> None:
        """Configure `count` samples; `folder` None is `gallery` in the run folder."""
        super().__init__(count)
        self.folder = folder

    def draw(self, trainer: pl.Trainer, module: DiffusionModule, samples: dict[str, DrawnSamples]) -> None:
        """Log and write the image."""
        if not samples:
            return
        results = module.evaluations.results
        labels = {
            name: f"{name}\n{results[name]['nfe']:.0f} NFE, {1000 * results[name]['seconds'] / len(drawn.x):.0f} ms"
            for name, drawn in samples.items()
        }
        points = next(iter(samples.values())).x.ndim == 2
        prompts = [prompts_of(trainer, drawn.condition) or [] for drawn in samples.values()]
        image = render(_panels(samples, labels, data_of(trainer))) if points else _rows(samples, labels, prompts)
        path = output_folder(trainer, self.folder, default=self.default_folder) / "gallery.png"
        save_image(trainer, image, path, tag="gallery")


def _rows(samples: dict[str, DrawnSamples], labels: dict[str, str], prompts: list[list[str]]) -> Tensor:
    """Draw images, one row for each evaluation, with their prompts under the last row of the same prompts."""
    columns = max(len(drawn.x) for drawn in samples.values())
    rows = []
    for (name, drawn), texts, below in zip(samples.items(), prompts, [*prompts[1:], []], strict=True):
        grid = image_grid(_shrunk(drawn.x), columns, captions=texts if texts != below else [""] * len(texts))
        label = caption_strips([labels[name]], LABEL)[0].expand(3, -1, -1)
        height = max(grid.shape[1], label.shape[1])
        rows.append(torch.cat([_padded(label, height, LABEL), _padded(grid, height, grid.shape[2])], dim=2))
    width = max(row.shape[2] for row in rows)
    return torch.cat([_padded(row, row.shape[1], width) for row in rows], dim=1)


def _padded(image: Tensor, height: int, width: int) -> Tensor:
    """Return `image` (3, h, w) with white below and at its right."""
    return F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]), value=255)


def _shrunk(x: Tensor) -> Tensor:
    """Return images `x` (B, C, H, W) with no side above `LARGEST_SIDE`."""
    scale = LARGEST_SIDE / max(x.shape[2:])
    if scale >= 1:
        return x
    small = F.interpolate(x.float(), scale_factor=scale, mode="bilinear", antialias=True)
    return small.round().to(x.dtype) if x.dtype == torch.uint8 else small


def _panels(samples: dict[str, DrawnSamples], labels: dict[str, str], real: DataInterface) -> Figure:
    """Draw points, one panel for each evaluation, four panels in a row."""
    high = -(-len(samples) // 4)
    figure = Figure(figsize=(16, 4.3 * high), dpi=60, layout="constrained")
    for number, (name, drawn) in enumerate(samples.items(), 1):
        axes = figure.add_subplot(high, min(len(samples), 4), number)
        axes.imshow(scatter(drawn.x, labels[name], limits_of(real)).permute(1, 2, 0).numpy())
        axes.set_axis_off()
    return figure
