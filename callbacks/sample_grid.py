"""Sample grids: the same few samples of every evaluation, again and again while training goes on."""

from __future__ import annotations

import re

import lightning.pytorch as pl

from callbacks.base import EvaluationSamples
from callbacks.output import image_grid, limits_of, log_image, output_folder, scatter, write_png
from lightning_guide.data import DataInterface
from lightning_guide.evaluation.sampling_loop import DrawnSamples
from lightning_guide.modules.diffusion import DiffusionModule

__all__ = ["SampleGrid"]


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
        folder = output_folder(trainer, self.folder, default="grids")
        assert trainer.state.fn is not None
        stage = f"{trainer.state.fn.value}-{module.images_seen}"
        real: DataInterface = trainer.datamodule  # type: ignore[attr-defined]
        for name, drawn in samples.items():
            if drawn.x.ndim == 2:
                picture = scatter(drawn.x, f"{name}, {module.images_seen:,} images seen", limits_of(real))
            else:
                picture = image_grid(drawn.x, self.columns)
            log_image(trainer, f"samples/{name}", picture)
            write_png(folder / f"{stage}-{re.sub(UNSAFE, '_', name)}.png", picture)
