"""Losses of a guide and of an independent judge along the trajectory, for successful and failed samples.

After figure 1 of Shen et al. 2024, https://arxiv.org/abs/2403.12404: the loss oscillates at high noise, then falls, and
is low for failures as well. The gap between judge and guide measures adversarial loss reduction.
"""

from __future__ import annotations

import math
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
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.objectives import Energy

__all__ = ["LossCurves"]


GUIDE, JUDGE = "#0072B2", "#CC3311"


class LossCurves(GuidedTrajectories):
    """Loss of the guide and of the `judge` at the clean estimates, over sigma: `loss_curves.png` and `.json`.

    A sample succeeds if the judge's loss of its last estimate is at most `threshold`. For each evaluation the numbers
    are the means over successes and over failures at each step; `gap` is the judge's mean loss minus the guide's at the
    last guided step.
    """

    def __init__(self, judge: Energy, *, threshold: float = 0.6931, count: int = 64, folder: str | None = None) -> None:
        """Configure the figure.

        Args:
            judge: energy of another network than the guide's, such as `ClassLabel(RunNetwork(judge))`.
            threshold: largest loss of a success; the default is ln 2, for labels a probability of 1/2.
            count: samples of each evaluation.
            folder: folder of the files; None is `report` in the run folder.
        """
        super().__init__(count, folder)
        self.judge, self.threshold = judge, threshold

    @torch.no_grad()
    def draw(self, trainer: pl.Trainer, module: DiffusionModule, walks: dict[str, RecordedTrajectory]) -> None:
        """Draw one panel for each evaluation."""
        figure = Figure(figsize=(4.2 * len(walks), 3.8), dpi=100, layout="constrained")
        numbers = {}
        for axes, (name, walk) in zip(figure.subplots(1, len(walks), squeeze=False)[0], walks.items(), strict=True):
            judged = torch.stack([self._judge(x, walk.condition, module.device) for x in walk.plain])
            success = self._judge(walk.guided[-1], walk.condition, module.device) <= self.threshold
            numbers[name] = _numbers(walk, judged, success)
            _panel(axes, numbers[name], name)
        save_figure(trainer, self.folder, "loss_curves", figure, numbers)

    def _judge(self, x: Tensor, condition: Tensor | None, device: torch.device) -> Tensor:
        loss: Tensor = self.judge.to(device)(x.to(device), None if condition is None else condition.to(device))
        return loss.float().cpu()


def _numbers(walk: RecordedTrajectory, judged: Tensor, success: Tensor) -> dict[str, Any]:
    """Return the means over successes and failures, and the gap."""
    guided = (~walk.losses.isnan().any(1)).nonzero()[:, 0]
    gap = (judged[guided[-1]] - walk.losses[guided[-1]]).mean() if len(guided) else torch.tensor(math.nan)
    values: dict[str, Any] = {"sigmas": walk.sigmas.tolist(), "gap": float(gap)}
    for kind, rows in (("success", success), ("failure", ~success)):
        values[kind] = {"count": int(rows.sum())}
        if rows.any():
            values[kind] |= {
                "guide": nan_to_none(walk.losses[:, rows].mean(1)),
                "judge": nan_to_none(judged[:, rows].mean(1)),
            }
    return values


def _panel(axes: Any, values: dict[str, Any], title: str) -> None:
    """Draw up to four curves: guide and judge, for successes and failures."""
    for kind, style in (("success", "-"), ("failure", "--")):
        for network, color in (("guide", GUIDE), ("judge", JUDGE)):
            if values[kind]["count"]:
                curve = none_to_nan(values[kind][network])
                label = f"{network}, {values[kind]['count']} {kind}{'es' if kind == 'success' else 's'}"
                axes.plot(values["sigmas"], curve, linestyle=style, color=color, label=label)
    axes.set(xscale="log", xlabel="sigma", ylabel="loss", title=f"{title}, gap {values['gap']:.2f}")
    axes.invert_xaxis()
    axes.legend(fontsize=7)
