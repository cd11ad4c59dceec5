"""The gallery: the same samples under every evaluation in one picture, with what each of them costs."""

from __future__ import annotations

import lightning.pytorch as pl
from matplotlib.figure import Figure

from callbacks.base import EvaluationSamples
from callbacks.output import image_grid, limits_of, log_image, output_folder, render, scatter, write_png
from lightning_guide.data import DataInterface
from lightning_guide.evaluation.sampling_loop import DrawnSamples
from lightning_guide.modules.diffusion import DiffusionModule

__all__ = ["Gallery"]


ROW = 0.9  # inches


class Gallery(EvaluationSamples):
    """One row for each evaluation, one column for each of the samples 0 ... `count` - 1.

    A row is labeled with the evaluation, its network calls a sample (NFE) and its seconds a sample. Points are drawn
    as one panel for each evaluation. Goes to TensorBoard as `gallery` and to `<folder>/gallery.png`.
    """

    def __init__(self, count: int = 12, *, folder: str | None = None) -> None:
        """`count` samples; `folder` is `gallery` in the folder of the run if None."""
        super().__init__(count)
        self.folder = folder

    def draw(self, trainer: pl.Trainer, module: DiffusionModule, samples: dict[str, DrawnSamples]) -> None:
        """Logs and writes the picture."""
        if not samples:
            return
        results = module.evaluations.results
        labels = {
            name: f"{name}\n{results[name]['nfe']:.0f} NFE, {1000 * results[name]['seconds'] / len(drawn.x):.0f} ms"
            for name, drawn in samples.items()
        }
        points = next(iter(samples.values())).x.ndim == 2
        figure = _panels(samples, labels, trainer.datamodule) if points else _rows(samples, labels)  # type: ignore[attr-defined]
        picture = render(figure)
        log_image(trainer, "gallery", picture)
        write_png(output_folder(trainer, self.folder, default="gallery") / "gallery.png", picture)


def _rows(samples: dict[str, DrawnSamples], labels: dict[str, str]) -> Figure:
    """Pictures, an evaluation a row."""
    columns = max(len(drawn.x) for drawn in samples.values())
    figure = Figure(figsize=(1.8 + 0.91 * ROW * columns, ROW * len(samples)), dpi=100, layout="constrained")
    for axes, (name, drawn) in zip(figure.subplots(len(samples), squeeze=False)[:, 0], samples.items(), strict=True):
        axes.imshow(image_grid(drawn.x, columns).permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_ylabel(labels[name], rotation=0, ha="right", va="center", fontsize=8)
        axes.set(xticks=[], yticks=[], frame_on=False)
    return figure


def _panels(samples: dict[str, DrawnSamples], labels: dict[str, str], real: DataInterface) -> Figure:
    """Points, an evaluation a panel, four in a row."""
    high = -(-len(samples) // 4)
    figure = Figure(figsize=(16, 4.3 * high), dpi=60, layout="constrained")
    for number, (name, drawn) in enumerate(samples.items(), 1):
        axes = figure.add_subplot(high, min(len(samples), 4), number)
        axes.imshow(scatter(drawn.x, labels[name], limits_of(real)).permute(1, 2, 0).numpy())
        axes.set_axis_off()
    return figure
