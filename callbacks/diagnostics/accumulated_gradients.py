"""Input-gradient visualizations of guide networks: gradients accumulated on random backgrounds.

After figure 2 of Shen et al. 2024, https://arxiv.org/abs/2403.12404.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.diagnostics.trajectories import save_figure
from callbacks.output import unwritable_output
from lightning_guide.data import data_of
from lightning_guide.guidance.training_free import Probe
from lightning_guide.guidance.training_free.gradient_probe import gradient_ascent, smoothness
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.objectives import Energy
from lightning_guide.seeds import SampleSeeds, check_seed

__all__ = ["AccumulatedGradients"]


class AccumulatedGradients(pl.Callback):
    """Accumulated gradients of each of the `probes` on the same backgrounds, one row of images for each.

    Written to `accumulated_gradients.png` and `.json` after validation and test, on process 0. Backgrounds are uniform
    on [-1/2, 1/2]. For each probe the numbers are means over the images: its final loss, the loss of the `judge`, and
    the share of low frequencies in the change (`smoothness`).
    """

    def __init__(
        self,
        probes: dict[str, Probe],
        judge: Energy | None = None,
        *,
        labels: Sequence[int] = tuple(range(10)),
        steps: int = 1000,
        seed: int = 0,
        folder: str | None = None,
    ) -> None:
        """Configure the image.

        Args:
            probes: name -> guide.
            judge: energy of a network that none of the probes uses, to test whether it recognizes the images.
            labels: one image for each.
            steps: number of steps of length 0.01 sqrt(d) along the gradient.
            seed: seed of backgrounds and draws.
            folder: folder of the files; None is `report` in the run folder.

        Raises:
            ValueError: if `probes` or `labels` is empty, or `steps` is below 1.
        """
        super().__init__()
        if not probes or not labels or steps < 1:
            raise ValueError(
                f"AccumulatedGradients needs probes, labels and steps >= 1, got {len(probes)}, {len(labels)}, {steps}"
            )
        self.probes, self.judge, self.labels = dict(probes), judge, list(labels)
        self.steps, self.seed, self.folder = steps, check_seed(seed), folder

    def missing(self, trainer: pl.Trainer, module: Any) -> Iterator[str]:
        """Yield a sentence if the files cannot be written."""
        yield from unwritable_output(trainer, self)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw the images, on process 0."""
        self._draw(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw the images, on process 0."""
        self._draw(trainer, pl_module)

    @torch.no_grad()
    def _draw(self, trainer: pl.Trainer, module: DiffusionModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        with module.evaluations.contain(type(self).__name__):
            self._ascend(trainer, module)

    def _ascend(self, trainer: pl.Trainer, module: DiffusionModule) -> None:
        """Write the figure."""
        data = data_of(trainer)
        labels = torch.tensor(self.labels, device=module.device)
        images, numbers = {}, {}
        for name, probe in self.probes.items():
            seeds = SampleSeeds(self.seed, range(len(labels)))
            start = seeds.uniform("background", data.data_shape, module.device) - 0.5
            x, losses = gradient_ascent(probe, start, seeds=seeds, condition=labels, steps=self.steps)
            images[name] = data.decode(x).cpu()
            numbers[name] = {"loss": float(losses[-1].mean()), "smoothness": float(smoothness(x - start).mean())}
            if self.judge is not None:
                numbers[name]["judge"] = float(self.judge.to(x.device)(x, labels).mean())
        save_figure(trainer, self.folder, "accumulated_gradients", _figure(images, self.labels, numbers), numbers)


def _figure(images: Mapping[str, Tensor], labels: Sequence[int], numbers: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw one row for each probe, one column for each label."""
    figure = Figure(figsize=(1.0 * len(labels) + 2.2, 1.15 * len(images)), dpi=100, layout="constrained")
    rows = figure.subplots(len(images), len(labels), squeeze=False)
    for row, (name, drawn) in zip(rows, images.items(), strict=True):
        for axes, image, number in zip(row, drawn, labels, strict=True):
            axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            if row is rows[0]:
                axes.set_title(str(number), fontsize=8)
        judged = numbers[name].get("judge")
        label = name if judged is None else f"{name}\njudge {judged:.2f}"
        row[0].set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
    return figure
