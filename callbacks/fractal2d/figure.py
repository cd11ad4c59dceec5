"""Figure of the 2D study of autoguidance: effect of guidance on samples, trajectories and metrics.

After figure 1 and the figures of the 2D example of Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of
Itself", https://arxiv.org/abs/2406.02507.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.figure import Figure
from torch import nn

from callbacks.base import EvaluationSamples, ResolvedGuidances
from callbacks.fractal2d.density import KnownDistribution, ReferenceDensity, ViewWindow
from callbacks.fractal2d.rows import PlottedMethod, ZoomWindow, close_up_row, curves_row, samples_row
from callbacks.output import output_folder, render, save_image
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.evaluation.sampling_loop import DrawnSamples
from lightning_guide.guidance import Guided, WeightSchedule
from lightning_guide.modules.diffusion import DiffusionModule

__all__ = ["FractalFigure"]


TRUTH, UNGUIDED, OTHER = "#222222", "#4477AA", "#777777"


COLORS = ("#EE6677", "#AA3377", "#228833", "#CCBB44", "#66CCEE")  # of the curves, in their order


MEASURES = {"outliers": "outliers", "lost_mass": "lost mass", "total_variation": "total variation"}


PERCENT = ("outliers", "lost_mass")


TRUE_SAMPLES = {"outliers (%)": 1.0, "lost mass (%)": 0.0}


class FractalFigure(ResolvedGuidances, EvaluationSamples):
    """Figure `figure.png`, and `report/figure` in loggers, at the end of each validation and test.

    First row: reference samples and those of the evaluations `panels`, on the true density and the outline of the
    region that holds 99 % of its mass. Second row, a close-up: trajectories from the same starting points without and
    with guidance, the learned densities of the main model and of the guider, their log ratio and the guidance vector it
    gives. Third row: outliers, lost mass and total variation against the guidance weight, from the results of
    `DensityMetrics`.

    No figure is drawn while a required evaluation is skipped because its guider is not stored yet.
    """

    def __init__(
        self,
        distribution: nn.Module,
        panels: dict[str, str],
        curves: dict[str, str],
        *,
        close_up: ZoomWindow | None = None,
        center: tuple[float, float] = (0.30, 0.30),
        half_width: float = 1.2,
        smoothing: float = 0.002,
        count: int = 16384,
        folder: str | None = None,
    ) -> None:
        """Configure the figure.

        Args:
            distribution: the true distribution, with `sample` and `log_density`.
            panels: title -> evaluation, the panels of the first row after that of the reference samples.
            curves: method -> pattern of its evaluations, such as "cfg_*"; each curve has the unguided evaluation at
                weight 1.
            close_up: settings of the second row, by default those of the paper.
            center: center of the window of the first row.
            half_width: half of the side of that window.
            smoothing: noise level of the true density that is drawn and outlined.
            count: points in a panel.
            folder: folder of the file; None is `report` in the run folder.

        Raises:
            ValueError: if `distribution` lacks `sample` or `log_density`.
        """
        super().__init__(count)
        self.truth = ReferenceDensity(cast(KnownDistribution, distribution), smoothing)
        self.panels, self.curves, self.close_up = dict(panels), dict(curves), close_up or ZoomWindow()
        self.window, self.folder = ViewWindow((center[0], center[1]), half_width), folder
        self._colors = {method: COLORS[i % len(COLORS)] for i, method in enumerate(self.curves)}

    def missing(self, trainer: pl.Trainer, module: Any) -> Iterator[str]:
        """Yield sentences if an evaluation, its guider or the learned density is missing, or the file unwritable."""
        yield from super().missing(trainer, module)
        yield from self.absent(module)

    def absent(self, module: Any) -> Iterator[str]:
        """Yield what cannot be drawn; existing evaluations are named."""
        evaluations: dict[str, Evaluation] = module.evaluations.evaluations
        found = f"there are {', '.join(evaluations) or 'none'}"
        for name in self._needed:
            if name not in evaluations:
                yield f"FractalFigure draws the evaluation {name!r}, which does not exist; {found}"
        for method, pattern in self.curves.items():
            if not any(fnmatchcase(name, pattern) for name in evaluations):
                yield f"FractalFigure: {pattern!r} of the curve {method!r} matches no evaluation; {found}"
        guided = evaluations.get(self.close_up.guided)
        if guided is not None and not isinstance(guided.guidance, Guided):
            yield f"FractalFigure: the evaluation {self.close_up.guided!r} of the close-up has no guider"
        if not callable(getattr(module.denoiser, "log_density", None)):
            yield (
                f"FractalFigure draws learned densities, but a {type(module.denoiser).__name__} has none; "
                "expected a denoiser with log_density, such as LogDensityMLP"
            )

    @torch.no_grad()
    def draw(self, trainer: pl.Trainer, module: DiffusionModule, samples: dict[str, DrawnSamples]) -> None:
        """Draw, write and log the figure."""
        resolved, self.resolved = self.resolved, {}
        missing = [name for name in self._needed if name not in samples]
        if missing:
            rank_zero_info(f"no figure yet: there are no samples of {', '.join(missing)}")
            return
        evaluations, results = module.evaluations.evaluations, module.evaluations.results
        figure = Figure(figsize=(22, 15), dpi=90, layout="constrained")
        first, second, third = cast(Any, figure.subfigures(3, 1, height_ratios=(1.08, 1.08, 0.84)))
        drawn = [(f"{title}\n{_numbers(results[name])}", name) for title, name in self.panels.items()]
        panels = [(title, samples[name].x, self._color(name)) for title, name in drawn]
        title = f"truth\n{self.count:,} samples, 99 % in the outline"
        samples_row(first, self.truth, self.window, [(title, self.truth.sample(self.count), TRUTH), *panels])
        methods = [
            PlottedMethod(self._title(name), self._color(name), resolved[name], evaluations[name].sampler)
            for name in (self.close_up.unguided, self.close_up.guided)
        ]
        close_up_row(second, self.truth, self.close_up, methods, device=module.device)
        measures = {_label(key): self._curves(key, evaluations, results) for key in MEASURES}
        curves_row(third, measures, colors=self._colors, truth=TRUE_SAMPLES)
        save_image(trainer, render(figure), output_folder(trainer, self.folder) / "figure.png", tag="report/figure")

    @property
    def _needed(self) -> list[str]:
        """Evaluations that the figure requires."""
        return list(dict.fromkeys([*self.panels.values(), self.close_up.unguided, self.close_up.guided]))

    def _title(self, name: str) -> str:
        """Return the panel title of an evaluation, or its name."""
        return next((title for title, evaluation in self.panels.items() if evaluation == name), name)

    def _color(self, name: str) -> str:
        """Return the color of the curve that an evaluation belongs to."""
        if name == self.close_up.unguided:
            return UNGUIDED
        return next((self._colors[m] for m, pattern in self.curves.items() if fnmatchcase(name, pattern)), OTHER)

    def _curves(
        self, key: str, evaluations: Mapping[str, Evaluation], results: Mapping[str, Mapping[str, float]]
    ) -> dict[str, list[tuple[float, float]]]:
        """Return method -> (weight, value) pairs of one measure, in order of weight."""
        factor = 100 if key in PERCENT else 1
        curves = {}
        for method, pattern in self.curves.items():
            names = {self.close_up.unguided, *[name for name in results if fnmatchcase(name, pattern)]}
            values = {name: factor * results[name][key] for name in names if key in results[name]}
            curves[method] = sorted((_weight(evaluations[name].guidance), value) for name, value in values.items())
        return curves


def _numbers(result: Mapping[str, float]) -> str:
    """Return the measures of one evaluation as one line of text."""
    words = {"outliers": "outliers", "lost_mass": "lost", "total_variation": "TV"}
    known = [(word, key, result[key]) for key, word in words.items() if key in result]
    return ", ".join(f"{word} {100 * v:.1f} %" if key in PERCENT else f"{word} {v:.3f}" for word, key, v in known)


def _label(key: str) -> str:
    """Return the name of a measure with its unit."""
    return MEASURES[key] + (" (%)" if key in PERCENT else "")


def _weight(guidance: Denoiser) -> float:
    """Return w of D_neg + w (D_pos - D_neg), for several negatives 1 + sum_i (w_i - 1); 1 without guidance."""
    return 1 + sum(_number(weight) - 1 for weight in guidance.weights) if isinstance(guidance, Guided) else 1.0


def _number(weight: float | WeightSchedule) -> float:
    """Return the constant weight inside a schedule."""
    while isinstance(weight, WeightSchedule):
        weight = cast(Any, weight).weight
    return weight
