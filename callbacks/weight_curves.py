"""Curves of a metric against the guidance weight and against the guider's images of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import lightning.pytorch as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from callbacks.output import output_folder, render, save_image, unwritable_output
from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import Guided, Main, Neon, Snapshot
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.runs.models import open_snapshots
from lightning_guide.snapshots.names import parse_images

__all__ = ["WeightCurves"]


class WeightPoint(NamedTuple):
    """One evaluation: `value` of the metric for `method` at `weight`, with the guider after `images`."""

    method: str
    weight: float
    images: int
    value: float


class WeightCurves(pl.Callback):
    """Curves of one metric over all evaluations with a single guider, after each validation and test.

    One row for each method (`SIMS`, `Neon`, `Autoguidance`, ...): to the left the metric against w = 1 + omega, one
    curve for each age of the guider; to the right against the age, one curve for each weight. Evaluations of a plain
    model, `Main` or `Snapshot`, are horizontal lines. Other evaluations and methods with a single point are left out.
    Logged as `curves/<metric>` and written to `<folder>/curves_<metric>.png`.
    """

    def __init__(self, metric: str = "fd", *, folder: str | None = None) -> None:
        """Configure the `metric`, named as in the results; `folder` None is `report` in the run folder."""
        super().__init__()
        self.metric, self.folder = metric, folder

    def missing(self, trainer: pl.Trainer, module: Any) -> Iterator[str]:
        """Yield a sentence if the files cannot be written."""
        yield from unwritable_output(trainer, self)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw the curves, on process 0."""
        self._draw(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw the curves, on process 0."""
        self._draw(trainer, pl_module)

    def _draw(self, trainer: pl.Trainer, module: DiffusionModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        with module.evaluations.contain(type(self).__name__):
            self._write(trainer, module)

    def _write(self, trainer: pl.Trainer, module: DiffusionModule) -> None:
        """Write the figure, if there are curves."""
        found = {n: r[self.metric] for n, r in module.evaluations.results.items() if self.metric in r}
        guidances = {name: module.evaluations.evaluations[name].guidance for name in found}
        plain = {name: found[name] for name, guidance in guidances.items() if isinstance(guidance, Main | Snapshot)}
        points: dict[str, list[WeightPoint]] = {}
        for name, guidance in guidances.items():
            if point := _point(guidance, found[name], module.planned_images):
                points.setdefault(point.method, []).append(point)
        points = {method: several for method, several in points.items() if len(several) > 1}
        if not points:
            return
        image = render(_figure(points, plain, self.metric))
        path = output_folder(trainer, self.folder) / f"curves_{self.metric}.png"
        save_image(trainer, image, path, tag=f"curves/{self.metric}")


def _point(guidance: Denoiser, value: float, planned_images: int | None) -> WeightPoint | None:
    """Return the point of an evaluation; None unless it has one guider of known age at one constant weight."""
    if isinstance(guidance, Neon):
        weight: Any = guidance.weight
        guider: Any = guidance.auxiliary
    elif isinstance(guidance, Guided) and len(guidance.negatives) == 1:
        weight, guider = guidance.weights[0], guidance.negatives[0]
    else:
        return None
    if not isinstance(guider, Snapshot) or not isinstance(weight, int | float):
        return None
    images = parse_images(guider.images)
    if not isinstance(images, int):
        try:
            images = open_snapshots(guider.run).resolve_images(guider.images) if guider.run else images
        except ValueError:  # deleted since the evaluation
            return None
    if not isinstance(images, int):
        images = int(images * (planned_images or 1_000_000))  # without a plan: millionths of the run
    return WeightPoint(type(guidance).__name__, float(weight), images, value)


def _figure(points: Mapping[str, list[WeightPoint]], plain: Mapping[str, float], metric: str) -> Figure:
    """Draw one row of two panels for each method."""
    figure = Figure(figsize=(11, 3.6 * len(points)), dpi=90, layout="constrained")
    rows = figure.subplots(len(points), 2, squeeze=False, sharey="row")
    for (left, right), (method, several) in zip(rows, points.items(), strict=True):
        ages, weights = sorted({p.images for p in several}), sorted({p.weight for p in several})
        for age in ages:
            _curve(left, {p.weight: p.value for p in several if p.images == age}, f"guider after {age} images")
        for weight in weights:
            _curve(right, {p.images: p.value for p in several if p.weight == weight}, f"w = {weight:g}")
        left.set(title=method, xlabel="weight w = 1 + omega", ylabel=metric)
        right.set(title=method, xlabel="age of the guider (images)")
        for axes in (left, right):
            for number, (name, value) in enumerate(plain.items()):
                axes.axhline(value, color="black", linestyle=(0, (2 + 2 * number, 2)), linewidth=1, label=name)
            axes.legend(fontsize=7)
    return figure


def _curve(axes: Axes, values: Mapping[float, float] | Mapping[int, float], label: str) -> None:
    """Draw one curve, sorted by x."""
    x = sorted(values)
    axes.plot(x, [values[at] for at in x], marker="o", markersize=4, label=label)  # type: ignore[index]
