"""The command sweep: every point of a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace

from lightning_guide.commands.search import Search
from lightning_guide.search.config import SearchObjective, check_objectives
from lightning_guide.search.figures import draw_heat_maps, draw_sensitivity
from lightning_guide.search.results_file import ResultsFile
from lightning_guide.search.sweep import COST, Swept, run_sweep, sweep_results, write_csv, write_hparams
from lightning_guide.utils.terminal import counted

__all__ = ["Sweep"]


@dataclass
class Sweep(Search):
    """Score of every point of the grid."""

    def run(self, trainer: pl.Trainer, module: pl.LightningModule, data: Any, settings: Namespace) -> None:
        """Score every point, or those that are missing; then write tables and figures."""
        scorer = self.scorer(trainer, module, data, settings)
        space = scorer.space
        ledger = ResultsFile(self.out / "results.json", self.identity(scorer) | {"blocks": self.file.blocks})
        samples = (1 + len(space.points)) * self.file.blocks * self.file.block
        with self.watched("sweep", samples, ledger, scorer):
            run_sweep(space, scorer, ledger, self.file.objectives, blocks=self.file.blocks, seed=self.file.seed)
        if not trainer.is_global_zero:
            return
        found = sweep_results(space, ledger)
        objectives = self.file.objectives or _first_metric(found)
        for scores in found.values():
            check_objectives(objectives, scores)
        failed = {n: point["failed"] for n, point in ledger.content["points"].items() if "failed" in point}
        write_csv(space, found, failed, self.out / "results.csv")
        figures = [self.out / "sensitivity.png", self.out / "averages.png"]
        draw_sensitivity(space, found, objectives, figures[0])
        draw_heat_maps(space, found, objectives, figures[1])
        figures = [path for path in figures if path.is_file()]
        write_hparams(space, found, self.out / "tensorboard" / "sweep", figures=figures)
        points = f"{counted(len(found), 'point')} scored, {len(failed)} failed"
        shown = ", ".join(map(str, figures))
        print(f"{points}; table {self.out / 'results.csv'}; figures {shown}; all {ledger.path}")


def _first_metric(found: Swept) -> tuple[SearchObjective, ...]:
    metrics = [key for scores in found.values() for key in scores.values if key not in COST]
    return (SearchObjective(metrics[0]),) if metrics else ()
