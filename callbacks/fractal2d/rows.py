"""Rows of the 2D figure: samples, a close-up of trajectories and densities, curves against the guidance weight."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any, cast

import torch
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from torch import Tensor

from callbacks.fractal2d import panels
from callbacks.fractal2d.density import DensityMap, ReferenceDensity, ViewWindow
from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import Guided
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers import Sampler
from lightning_guide.seeds import SampleSeeds

__all__ = ["ZoomWindow", "PlottedMethod", "close_up_row", "curves_row", "samples_row", "start_points", "trajectories"]


@dataclass(frozen=True)
class ZoomWindow:
    """Settings of the close-up (window, noise level and spacing are those of the paper).

    Attributes:
        unguided: evaluation of the first trajectories.
        guided: evaluation of the second trajectories; the densities of its main model and first guider are drawn.
        center: center of the window.
        half_width: half of the window's side.
        sigma: noise level at which trajectories start and densities are drawn.
        spacing: smallest distance between two starting points.
        candidates: points drawn from the distribution; those in the window are thinned out.
        steps: sampler steps from `sigma` down.
    """

    unguided: str = "unguided"
    guided: str = "autoguidance"
    center: tuple[float, float] = (0.45, 1.22)
    half_width: float = 0.3
    sigma: float = 0.03
    spacing: float = 0.045
    candidates: int = 32768
    steps: int = 32

    @property
    def window(self) -> ViewWindow:
        """Window of the close-up."""
        return ViewWindow((self.center[0], self.center[1]), self.half_width)


def start_points(truth: ReferenceDensity, close_up: ZoomWindow) -> Tensor:
    """Return points (n, 2) drawn from p(x; sigma) inside the window, no two closer than the spacing.

    Raises:
        ValueError: if none of the candidates lies inside.
    """
    x = truth.sample(close_up.candidates, sigma=close_up.sigma)
    inside = x[close_up.window.contains(x)]
    if not len(inside):
        raise ValueError(
            f"none of {close_up.candidates} true points lies in the close-up around {tuple(close_up.center)} with the "
            f"half-width {close_up.half_width:g}; expected a window where the distribution is"
        )
    taken = inside[:1]
    for point in inside[1:]:
        if (taken - point).square().sum(dim=1).min() >= close_up.spacing**2:
            taken = torch.cat([taken, point[None]])
    return taken


def trajectories(denoiser: Denoiser, sampler: Sampler, x: Tensor, *, sigma: float, steps: int) -> Tensor:
    """Return the states (steps + 1, n, 2), on the CPU, of `sampler` from `x` (n, 2) at `sigma` to its lowest level."""
    short = copy.copy(sampler)
    lowest = float(sampler.levels(denoiser)[-2])
    short.grid = KarrasGrid(steps, sigma_min=min(lowest, sigma / 2), sigma_max=sigma)
    walk = short.steps(denoiser, x, seeds=SampleSeeds(0, range(len(x))))
    return torch.stack([x.cpu(), *[trajectory.x.cpu() for trajectory in walk]])


WIDE, CLOSE, ARROWS = 500, 300, 17  # cells and arrows along a side


TITLE_WIDTH = 44  # characters


@dataclass(frozen=True)
class PlottedMethod:
    """Method of the close-up: title, color and resolved denoiser, with the sampler of its evaluation."""

    title: str
    color: str
    denoiser: Denoiser
    sampler: Sampler


def samples_row(
    figure: SubFigure, truth: ReferenceDensity, window: ViewWindow, samples: Sequence[tuple[str, Tensor, str]]
) -> None:
    """Draw one panel for each (title, points (B, 2), color)."""
    for axes, (title, x, color) in zip(_axes(figure, len(samples)), samples, strict=True):
        panels.samples_panel(axes, x, truth.map(window, WIDE), truth.level, color=color)
        _title(axes, title)


def close_up_row(
    figure: SubFigure,
    truth: ReferenceDensity,
    close_up: ZoomWindow,
    methods: Sequence[PlottedMethod],
    *,
    device: torch.device,
) -> None:
    """Draw trajectories of each method, then densities of the last one's main model and guider, and their log ratio."""
    window, level = close_up.window, truth.level
    shape = truth.map(window, CLOSE)
    x = start_points(truth, close_up).to(device)
    axes = iter(_axes(figure, len(methods) + 3))
    for method in methods:
        states = trajectories(method.denoiser, method.sampler, x, sigma=close_up.sigma, steps=close_up.steps)
        panel = next(axes)
        panels.trajectories_panel(panel, states, shape, level, color=method.color)
        outside = f"{100 * truth.outside(states[-1]):.0f} % of {len(x)} end outside the outline"
        _title(panel, f"{method.title}: from sigma {close_up.sigma:g}\n{outside}")
    guided = cast(Guided, methods[-1].denoiser)
    models = {"main model": guided.positive, "guider": cast(Denoiser, guided.negatives[0])}
    sigma = torch.tensor(close_up.sigma, device=device)
    maps, scores = {}, {}
    exact = DensityMap.of(lambda points: truth.log_density(points, close_up.sigma), window, CLOSE).normalized()
    places = window.grid(ARROWS)
    for name, model in models.items():
        maps[name] = DensityMap.of(_learned(model, sigma), window, CLOSE).normalized()
        scores[name] = (model(places.to(device), sigma).cpu() - places) / close_up.sigma**2
        panel = next(axes)
        panels.density_panel(panel, maps[name], shape, level, (places, scores[name]))
        divergence = f"divergence from the true density {exact.divergence(maps[name]):.3f} nats"
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
    colors: Mapping[str, str],
    truth: Mapping[str, float],
) -> None:
    """Draw one panel for each measure: label -> method -> (weight, value); `truth`: values of reference samples."""
    grid = _axes(figure, len(measures))
    for axes, (label, curves) in zip(grid, measures.items(), strict=True):
        panels.curves_panel(axes, curves, colors=colors, truth=truth.get(label))
        _title(axes, f"{label} against the guidance weight")
        axes.set(xlabel="guidance weight w (scale of the score, for truncation)", ylabel=label)
    grid[0].legend(frameon=False)


def _learned(model: Denoiser, sigma: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the learned log-density at one noise level as a function of points."""
    log_density = cast(Any, model).log_density
    return lambda points: log_density(points.to(sigma.device), sigma)


def _title(axes: Axes, text: str) -> None:
    """Set a title, wrapped to the width of a panel."""
    axes.set_title("\n".join(part for line in text.splitlines() for part in wrap(line, TITLE_WIDTH)), fontsize=12)


def _axes(figure: SubFigure, count: int) -> list[Any]:
    """Return `count` axes side by side."""
    return list(figure.subplots(1, count, squeeze=False)[0])
