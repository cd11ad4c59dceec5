"""How the pushes of a guidance agree: each with the one before, and with the exact one where that is known.

Belardi et al. 2026 (AdamDPS) find successive gradients at odds with each other; Shen et al. 2024,
https://arxiv.org/abs/2403.12404, find those of ordinary classifiers misaligned.
"""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.diagnostics.trajectories import GuidedTrajectories, Walk, record
from lightning_guide.denoiser import Denoiser
from lightning_guide.modules.diffusion import DiffusionModule

__all__ = ["GradientCosines", "cosines"]


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines (T, B) of `a` and `b` (T, B, *); NaN where one is zero."""
    a, b = a.flatten(2).double(), b.flatten(2).double()
    return (a * b).sum(2) / (a.norm(dim=2) * b.norm(dim=2))


class GradientCosines(GuidedTrajectories):
    """Mean cosines of displacements over sigma: `gradient_cosines.png` and `.json`.

    The displacement of a step is the guided minus the unguided estimate at the same x: the negative gradient times a
    number for all step rules but Adam's. `successive`: with that of the step before; `exact`: with D_exact - D, where
    D_exact is the denoiser of the distribution that is wanted.
    """

    def __init__(self, exact: Denoiser | str | None = None, *, count: int = 64, folder: str | None = None) -> None:
        """Configures the picture.

        Args:
            exact: a denoiser, such as `analytic.GaussianMixture`; or the name of an evaluation, whose guidance then
                stands for it, such as one of the label-conditional model where the guides are given labels; or None.
            count: samples of each evaluation.
            folder: of the files; None is `report` in the folder of the run.
        """
        super().__init__(count, folder)
        self.exact = exact

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Checks that the evaluation `exact` exists.

        Raises:
            ValueError: if it does not.
        """
        names = pl_module.evaluations.names
        if isinstance(self.exact, str) and self.exact not in names and stage != "predict":
            raise ValueError(f"GradientCosines: there is no evaluation {self.exact!r}; there are {', '.join(names)}")

    @torch.no_grad()
    def draw(self, trainer: pl.Trainer, module: DiffusionModule, walks: dict[str, Walk]) -> None:
        """A panel of each kind of cosine, a curve for each evaluation."""
        exact = self.resolved[self.exact] if isinstance(self.exact, str) else self.exact
        numbers: dict[str, Any] = {}
        for name, found in walks.items():
            values = {"successive": cosines(found.pushes[1:], found.pushes[:-1])}
            if exact is not None:
                wanted = _along(exact.to(module.device), found, module.device)
                values["exact"] = cosines(found.pushes, wanted - found.plain)
            numbers[name] = {"sigmas": found.sigmas.tolist()} | {
                kind: [None if mean != mean else mean for mean in each.nanmean(1).tolist()]
                for kind, each in values.items()
            }
        record(trainer, self.folder, "gradient_cosines", _figure(numbers, exact is not None), numbers)


def _along(exact: Denoiser, found: Walk, device: torch.device) -> Tensor:
    """D_exact (T, B, *) at the states of a walk."""
    condition = found.condition.to(device) if found.condition is not None and exact.conditional else None
    said = [exact(x.to(device), s.to(device), condition).cpu() for x, s in zip(found.states, found.sigmas, strict=True)]
    return torch.stack(said)


def _figure(numbers: dict[str, Any], known: bool) -> Figure:
    """One or two panels."""
    titles = {"successive": "with the step before", "exact": "with the exact push"}
    kinds = list(titles)[: 1 + known]
    figure = Figure(figsize=(5 * len(kinds), 3.8), dpi=100, layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        for name, values in numbers.items():
            curve = [math.nan if value is None else value for value in values[kind]]
            axes.plot(values["sigmas"][-len(curve) :], curve, marker=".", label=name)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set(xscale="log", xlabel="sigma", ylabel="cosine", title=titles[kind], ylim=(-1.05, 1.05))
        axes.invert_xaxis()
        axes.legend(fontsize=7)
    return figure
