"""The loss of a guide along the trajectory, of samples that succeed and that fail, and beside it that of a judge.

After figure 1 of Shen et al. 2024, https://arxiv.org/abs/2403.12404: the loss oscillates at much noise, then
falls, and is low for failures, too. The gap between judge and guide is what the guide was only fooled by.
"""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.diagnostics.trajectories import GuidedTrajectories, Walk, record
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.objectives import Energy

__all__ = ["LossCurves"]


GUIDE, JUDGE = "#0072B2", "#CC3311"


class LossCurves(GuidedTrajectories):
    """Loss of the guide and of the `judge` at the clean estimates, over sigma: `loss_curves.png` and `.json`.

    A sample succeeds if the judge's loss of its last estimate is at most `threshold`. For each evaluation the numbers
    are the means over successes and over failures at each step; `gap` is the judge's mean loss at the last step that
    is guided minus the guide's.
    """

    def __init__(self, judge: Energy, *, threshold: float = 0.6931, count: int = 64, folder: str | None = None) -> None:
        """Configures the picture.

        Args:
            judge: another network than the guide's, such as `ClassLabel(RunNetwork(judge))`.
            threshold: largest loss of a success; the default is ln 2, for labels a probability of 1/2.
            count: samples of each evaluation.
            folder: of the files; None is `report` in the folder of the run.
        """
        super().__init__(count, folder)
        self.judge, self.threshold = judge, threshold

    @torch.no_grad()
    def draw(self, trainer: pl.Trainer, module: DiffusionModule, walks: dict[str, Walk]) -> None:
        """A panel for each evaluation."""
        figure = Figure(figsize=(4.2 * len(walks), 3.8), dpi=100, layout="constrained")
        numbers = {}
        for axes, (name, found) in zip(figure.subplots(1, len(walks), squeeze=False)[0], walks.items(), strict=True):
            judged = torch.stack([self._judge(x, found.condition, module.device) for x in found.plain])
            success = self._judge(found.guided[-1], found.condition, module.device) <= self.threshold
            numbers[name] = _numbers(found, judged, success)
            _panel(axes, numbers[name], name)
        record(trainer, self.folder, "loss_curves", figure, numbers)

    def _judge(self, x: Tensor, condition: Tensor | None, device: torch.device) -> Tensor:
        loss: Tensor = self.judge(x.to(device), None if condition is None else condition.to(device))
        return loss.float().cpu()


def _numbers(found: Walk, judged: Tensor, success: Tensor) -> dict[str, Any]:
    """Means by kind of sample, and the gap."""
    acts = (~found.losses.isnan().any(1)).nonzero()[:, 0]
    gap = (judged[acts[-1]] - found.losses[acts[-1]]).mean() if len(acts) else torch.tensor(math.nan)
    values: dict[str, Any] = {"sigmas": found.sigmas.tolist(), "gap": float(gap)}
    for kind, rows in (("success", success), ("failure", ~success)):
        values[kind] = {"count": int(rows.sum())}
        if rows.any():
            values[kind] |= {"guide": _means(found.losses[:, rows]), "judge": _means(judged[:, rows])}
    return values


def _means(losses: Tensor) -> list[float | None]:
    """Means (T,); None where the guide does not act."""
    return [None if mean != mean else mean for mean in losses.mean(1).tolist()]


def _panel(axes: Any, values: dict[str, Any], title: str) -> None:
    """Four curves."""
    for kind, style in (("success", "-"), ("failure", "--")):
        for who, color in (("guide", GUIDE), ("judge", JUDGE)):
            if values[kind]["count"]:
                curve = [math.nan if value is None else value for value in values[kind][who]]
                label = f"{who}, {values[kind]['count']} {kind}{'es' if kind == 'success' else 's'}"
                axes.plot(values["sigmas"], curve, linestyle=style, color=color, label=label)
    axes.set(xscale="log", xlabel="sigma", ylabel="loss", title=f"{title}, gap {values['gap']:.2f}")
    axes.invert_xaxis()
    axes.legend(fontsize=7)
