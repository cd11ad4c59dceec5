"""The three rows of the 2D figure: samples, a close-up, and curves against the guidance weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any, cast

import torch
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from torch import Tensor

from callbacks import fractal_panels as panels
from callbacks.close_up import CloseUp, starts, trajectories
from callbacks.density_map import DensityMap, Window
from callbacks.truth import Truth
from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import Guided
from lightning_guide.samplers import Sampler

__all__ = ["Method", "close_up_row", "curves_row", "samples_row"]

WIDE, CLOSE, ARROWS = 500, 300, 17  # cells and arrows along a side
TITLE_WIDTH = 44  # characters


@dataclass(frozen=True)
class Method:
    """A way of sampling: title, colour and resolved denoiser, with the sampler of its evaluation."""

    title: str
    colour: str
    denoiser: Denoiser
    sampler: Sampler


def samples_row(figure: SubFigure, truth: Truth, window: Window, samples: Sequence[tuple[str, Tensor, str]]) -> None:
    """One panel for each (title, points (B, 2), colour)."""
    for axes, (title, x, colour) in zip(_axes(figure, len(samples)), samples, strict=True):
        panels.samples_panel(axes, x, truth.map(window, WIDE), truth.level, colour=colour)
        _title(axes, title)


def close_up_row(
    figure: SubFigure, truth: Truth, close_up: CloseUp, methods: Sequence[Method], *, device: torch.device
) -> None:
    """Trajectories of each method, then densities of the last one's main model and guider, and their log ratio."""
    window, level = close_up.window, truth.level
    shape = truth.map(window, CLOSE)
    x = starts(truth, close_up).to(device)
    axes = iter(_axes(figure, len(methods) + 3))
    for method in methods:
        states = trajectories(method.denoiser, method.sampler, x, sigma=close_up.sigma, steps=close_up.steps)
        panel = next(axes)
        panels.trajectories_panel(panel, states, shape, level, colour=method.colour)
        outside = f"{100 * truth.outside(states[-1]):.0f} % of {len(x)} end outside the outline"
        _title(panel, f"{method.title}: from sigma {close_up.sigma:g}\n{outside}")
    guided = cast(Guided, methods[-1].denoiser)
    models = {"main model": guided.positive, "guider": cast(Denoiser, guided.negatives[0])}
    sigma = torch.tensor(close_up.sigma, device=device)
    maps, scores = {}, {}
    exact = DensityMap.of(lambda points: truth.log_density(points, close_up.sigma), window, CLOSE).normalised()
    places = window.grid(ARROWS)
    for name, model in models.items():
        maps[name] = DensityMap.of(_learned(model, sigma), window, CLOSE).normalised()
        scores[name] = (model(places.to(device), sigma).cpu() - places) / close_up.sigma**2
        panel = next(axes)
        panels.density_panel(panel, maps[name], shape, level, (places, scores[name]))
        divergence = f"divergence from the truth {exact.divergence(maps[name]):.3f} nats"
        _title(panel, f"{name}: density and score at sigma {close_up.sigma:g}\n{divergence}")
    ratio = DensityMap(window, maps["main model"].values - maps["guider"].values)
    panel = next(axes)
    panels.ratio_panel(panel, ratio, shape, level, (places, scores["main model"] - scores["guider"]))
    divergence = f"divergence of the two {maps['main model'].divergence(maps['guider']):.3f} nats"
    _title(panel, f"ln(main / guider), brown -3 to green 3\n{divergence}")


def curves_row(
    figure: SubFigure,
    measures: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    *,
    colours: Mapping[str, str],
    truth: Mapping[str, float],
) -> None:
    """One panel for each measure: label -> method -> (weight, value) pairs; `truth` has the values of true samples."""
    grid = _axes(figure, len(measures))
    for axes, (label, curves) in zip(grid, measures.items(), strict=True):
        panels.curves_panel(axes, curves, colours=colours, truth=truth.get(label))
        _title(axes, f"{label} against the guidance weight")
        axes.set(xlabel="guidance weight w (scale of the score, for truncation)", ylabel=label)
    grid[0].legend(frameon=False)


def _learned(model: Denoiser, sigma: Tensor) -> Callable[[Tensor], Tensor]:
    """The learned log-density at one noise level, as a function of points."""
    log_density = cast(Any, model).log_density
    return lambda points: log_density(points.to(sigma.device), sigma)


def _title(axes: Axes, text: str) -> None:
    """Sets a title, whose lines are broken where they would run into the next panel."""
    axes.set_title("\n".join(part for line in text.splitlines() for part in wrap(line, TITLE_WIDTH)), fontsize=12)


def _axes(figure: SubFigure, count: int) -> list[Any]:
    """`count` axes side by side."""
    return list(figure.subplots(1, count, squeeze=False)[0])
