"""Gallery: the same samples under every evaluation in one image, with NFE and time per sample."""

from __future__ import annotations

from textwrap import wrap

import lightning.pytorch as pl
from matplotlib.figure import Figure

from callbacks.base import EvaluationSamples
from callbacks.output import image_grid, limits_of, output_folder, prompts_of, render, save_image, scatter
from lightning_guide.data import DataInterface, data_of
from lightning_guide.evaluation.sampling_loop import DrawnSamples
from lightning_guide.modules.diffusion import DiffusionModule

__all__ = ["Gallery"]


ROW, LINE = 0.9, 0.1  # inches
WIDTH = 18  # letters of a prompt in one line


class Gallery(EvaluationSamples):
    """Image of samples 0 ... `count` - 1: one row for each evaluation, one column for each sample.

    A row is labeled with the evaluation, its network calls per sample (NFE) and its milliseconds per sample, a column
    with the prompt of its samples. Points are drawn as one panel for each evaluation. Logged as `gallery` and written
    to `<folder>/gallery.png`.
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
        figure = _panels(samples, labels, data_of(trainer)) if points else _rows(samples, labels, prompts)
        path = output_folder(trainer, self.folder, default=self.default_folder) / "gallery.png"
        save_image(trainer, render(figure), path, tag="gallery")


def _rows(samples: dict[str, DrawnSamples], labels: dict[str, str], prompts: list[list[str]]) -> Figure:
    """Draw images, one row for each evaluation, under prompts that differ from those of the row above."""
    columns = max(len(drawn.x) for drawn in samples.values())
    titles = [["\n".join(wrap(text, WIDTH, max_lines=5)) for text in row] for row in prompts]
    titles = [row if row != above else [] for row, above in zip(titles, [[], *titles[:-1]], strict=True)]
    lines = sum(max((title.count("\n") + 2 for title in row), default=0) for row in titles)
    size = (1.8 + 0.91 * ROW * columns, ROW * len(samples) + LINE * lines)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    panels = figure.subplots(len(samples), squeeze=False)[:, 0]
    for axes, (name, drawn), title in zip(panels, samples.items(), titles, strict=True):
        image = image_grid(drawn.x, columns)
        axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_ylabel(labels[name], rotation=0, ha="right", va="center", fontsize=8)
        axes.set(xticks=[(i + 0.5) * image.shape[2] / columns for i in range(len(title))], yticks=[], frame_on=False)
        axes.set_xticklabels(title, fontsize=5)
        axes.tick_params(top=False, bottom=False, labeltop=True, labelbottom=False)
    return figure


def _panels(samples: dict[str, DrawnSamples], labels: dict[str, str], real: DataInterface) -> Figure:
    """Draw points, one panel for each evaluation, four panels in a row."""
    high = -(-len(samples) // 4)
    figure = Figure(figsize=(16, 4.3 * high), dpi=60, layout="constrained")
    for number, (name, drawn) in enumerate(samples.items(), 1):
        axes = figure.add_subplot(high, min(len(samples), 4), number)
        axes.imshow(scatter(drawn.x, labels[name], limits_of(real)).permute(1, 2, 0).numpy())
        axes.set_axis_off()
    return figure
