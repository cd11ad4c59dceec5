"""Sample grids: the same few samples of every evaluation, redrawn at each validation and test."""

from __future__ import annotations

import re

import lightning.pytorch as pl

from callbacks.base import EvaluationSamples
from callbacks.loggers import log_text
from callbacks.output import image_grid, limits_of, output_folder, prompts_of, save_image, scatter
from lightning_guide.data import data_of
from lightning_guide.evaluation.sampling_loop import DrawnSamples
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.report.grids import UNSAFE
from lightning_guide.utils.files import atomic

__all__ = ["SampleGrid"]


class SampleGrid(EvaluationSamples):
    """Grid of samples 0 ... `count` - 1 of each evaluation, at the end of validation and test.

    Points are drawn as a scatter plot of their first two coordinates, on axes that cover the real data. Each image is
    logged as `samples/<evaluation>`, at the step of the evaluated model, and written to
    `<folder>/<fit, validate or test>-<images that model has seen>-<evaluation>.png`. Under each image stands its
    prompt, shortened to four lines; whole prompts are logged as text, `samples/<evaluation>/prompts`, and written
    beside the image as `.txt`.
    """

    default_folder = "grids"

    def __init__(self, count: int = 64, *, columns: int = 8, folder: str | None = None) -> None:
        """Configure `count` samples in rows of `columns`; `folder` None is `grids` in the run folder.

        Raises:
            ValueError: if `count` or `columns` is below 1.
        """
        super().__init__(count)
        if columns < 1:
            raise ValueError(f"SampleGrid needs columns >= 1, got {columns}")
        self.columns, self.folder = columns, folder

    def draw(self, trainer: pl.Trainer, module: DiffusionModule, samples: dict[str, DrawnSamples]) -> None:
        """Log and write one image for each evaluation."""
        folder = output_folder(trainer, self.folder, default=self.default_folder)
        assert trainer.state.fn is not None
        stage = f"{trainer.state.fn.value}-{module.evaluated_images}"
        real = data_of(trainer)
        for name, drawn in samples.items():
            prompts = prompts_of(trainer, drawn.condition)
            if drawn.x.ndim == 2:
                image = scatter(drawn.x, f"{name}, {module.evaluated_images:,} images seen", limits_of(real))
            else:
                image = image_grid(drawn.x, self.columns, captions=prompts)
            path = folder / f"{stage}-{re.sub(UNSAFE, '_', name)}.png"
            save_image(trainer, image, path, tag=f"samples/{name}")
            if prompts:
                log_text(trainer, f"samples/{name}/prompts", "\n".join(f"1. {text}" for text in prompts))
                with atomic(path.with_suffix(".txt"), durable=False) as temporary:
                    temporary.write_text("\n".join(prompts) + "\n", encoding="utf-8")
