"""Cosines between guidance displacements of successive steps, and with the exact displacement if it is known.

Belardi et al. 2026 (AdamDPS) find that successive gradients disagree; Shen et al. 2024,
https://arxiv.org/abs/2403.12404, find those of ordinary classifiers misaligned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.diagnostics.trajectories import (
    GuidedTrajectories,
    RecordedTrajectory,
    nan_to_none,
    none_to_nan,
    save_figure,
)
from lightning_guide.denoiser import Denoiser
from lightning_guide.modules.diffusion import DiffusionModule

__all__ = ["GradientCosines", "cosines"]


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosines (T, B) of `a` and `b` (T, B, *); NaN where one is zero."""
    a, b = a.flatten(2).double(), b.flatten(2).double()
    return (a * b).sum(2) / (a.norm(dim=2) * b.norm(dim=2))


class GradientCosines(GuidedTrajectories):
    """Mean cosines of displacements over sigma: `gradient_cosines.png` and `.json`.

    The displacement of a step is the guided minus the unguided estimate at the same x: a multiple of the negative
    gradient for all step rules but Adam's. `successive`: cosine with the displacement of the previous step; `exact`:
    cosine with D_exact - D, where D_exact is the denoiser of the target distribution.
    """

    def __init__(self, exact: Denoiser | str | None = None, *, count: int = 64, folder: str | None = None) -> None:
        """Configure the figure.

        Args:
            exact: D_exact: a denoiser, such as `analytic.GaussianMixture`, or the name of an evaluation whose guidance
                is used, such as that of the label-conditional model for guides by labels; None: unknown.
            count: samples of each evaluation.
            folder: folder of the files; None is `report` in the run folder.
        """
        super().__init__(count, folder)
        self.exact = exact

    def missing(self, trainer: pl.Trainer, module: Any) -> Iterator[str]:
        """Yield sentences if the evaluation `exact` does not exist, or the files cannot be written."""
        yield from super().missing(trainer, module)
        yield from self.absent(module)

    def absent(self, module: Any) -> Iterator[str]:
        """Yield a sentence if the evaluation `exact` does not exist."""
        names = module.evaluations.names
        if isinstance(self.exact, str) and self.exact not in names:
            yield f"GradientCosines: no evaluation {self.exact!r}; existing: {', '.join(names)}"

    @torch.no_grad()
    def draw(self, trainer: pl.Trainer, module: DiffusionModule, walks: dict[str, RecordedTrajectory]) -> None:
        """Draw one panel for each kind of cosine, one curve for each evaluation."""
        exact = self.resolved[self.exact] if isinstance(self.exact, str) else self.exact
        numbers: dict[str, Any] = {}
        for name, walk in walks.items():
            values = {"successive": cosines(walk.pushes[1:], walk.pushes[:-1])}
            if exact is not None:
                target = _evaluate_along(exact.to(module.device), walk, module.device)
                values["exact"] = cosines(walk.pushes, target - walk.plain)
            means = {kind: nan_to_none(each.nanmean(1)) for kind, each in values.items()}
            numbers[name] = {"sigmas": walk.sigmas.tolist()} | means
        save_figure(trainer, self.folder, "gradient_cosines", _figure(numbers, exact is not None), numbers)


def _evaluate_along(exact: Denoiser, walk: RecordedTrajectory, device: torch.device) -> Tensor:
    """Return D_exact (T, B, *) at the states of a walk."""
    condition = walk.condition.to(device) if walk.condition is not None and exact.conditional else None
    states = zip(walk.states, walk.sigmas, strict=True)
    return torch.stack([exact(x.to(device), sigma.to(device), condition).cpu() for x, sigma in states])


def _figure(numbers: dict[str, Any], known: bool) -> Figure:
    """Draw one or two panels."""
    titles = {"successive": "with the previous step", "exact": "with the exact displacement"}
    kinds = list(titles)[: 1 + known]
    figure = Figure(figsize=(5 * len(kinds), 3.8), dpi=100, layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        for name, values in numbers.items():
            curve = none_to_nan(values[kind])
            axes.plot(values["sigmas"][-len(curve) :], curve, marker=".", label=name)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set(xscale="log", xlabel="sigma", ylabel="cosine", title=titles[kind], ylim=(-1.05, 1.05))
        axes.invert_xaxis()
        axes.legend(fontsize=7)
    return figure
