"""Figure of motion samples: ground paths of every evaluation, with goal and obstacle."""

from __future__ import annotations

import lightning.pytorch as pl
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from callbacks.base import EvaluationSamples
from callbacks.output import output_folder, render, save_image
from lightning_guide.evaluation.sampling_loop import DrawnSamples
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.objectives import Goal, Obstacle
from lightning_guide.objectives.motion import ground_path

__all__ = ["MotionFigure"]


class MotionFigure(EvaluationSamples):
    """Figure of the ground paths of each evaluation, at the end of each validation and test.

    Written to `<folder>/paths.png` and logged as `report/paths`.
    """

    def __init__(
        self,
        goal: Goal | None = None,
        obstacle: Obstacle | None = None,
        *,
        count: int = 24,
        folder: str | None = None,
    ) -> None:
        """Configure `count` paths of each evaluation, in meters; `folder` None is `report` in the run folder."""
        super().__init__(count)
        self.goal, self.obstacle, self.folder = goal, obstacle, folder

    def draw(self, trainer: pl.Trainer, module: DiffusionModule, samples: dict[str, DrawnSamples]) -> None:
        """Draw one panel for each evaluation, all to one scale."""
        if not samples:
            return
        paths = {name: ground_path(drawn.x.float()) for name, drawn in samples.items()}
        reach = 1.05 * max(float(path.nan_to_num().abs().amax((1, 2)).quantile(0.95)) for path in paths.values())
        figure = Figure(figsize=(3.4 * len(paths), 3.6), dpi=100, layout="constrained")
        for axes, (name, path) in zip(figure.subplots(1, len(paths), squeeze=False)[0], paths.items(), strict=True):
            for x, z in path.tolist():
                axes.plot(x, z, linewidth=0.8, color="#0072B2", alpha=0.7)
            if self.obstacle is not None:
                center = self.obstacle.center.tolist()
                axes.add_patch(Circle((center[0], center[1]), self.obstacle.radius, color="#CC3311", alpha=0.4))
            if self.goal is not None:
                axes.plot(*self.goal.goal.tolist(), "k*", markersize=9)
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=name, xlabel="meters")
        save_image(trainer, render(figure), output_folder(trainer, self.folder) / "paths.png", tag="report/paths")
