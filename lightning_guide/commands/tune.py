"""The command tune: a good point of a grid within a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace

from lightning_guide.commands.search import Search
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.search.calls import CallBudget
from lightning_guide.search.figures import draw_front
from lightning_guide.search.halving import Halving, check_budget
from lightning_guide.search.results_file import ResultsFile
from lightning_guide.search.tune_report import all_results, guidance_file, write_guidances
from lightning_guide.utils.distributed import true_on_all_ranks
from lightning_guide.utils.terminal import counted

__all__ = ["Tune"]


@dataclass
class Tune(Search):
    """Best point found within a budget of generated samples, of those within `calls` network calls per sample."""

    budget: int
    calls: int | None = None

    def __post_init__(self) -> None:
        """Read the file.

        Raises:
            ValueError: naming the key that is wrong, if it names no objectives, or `budget` or `calls` is too small.
        """
        super().__post_init__()
        if not self.file.objectives:
            raise ValueError(f"{self.path} has no objectives; expected metric: lowest or highest")
        check_budget(self.budget, size=self.file.block, aims=len(self.file.objectives))
        if self.calls is not None and self.calls < 1:
            raise ValueError(f"--calls is {self.calls}; expected at least 1 network call per sample")

    def run(self, trainer: pl.Trainer, module: pl.LightningModule, data: Any, settings: Namespace) -> None:
        """Search within the budget, or resume; then write the guidances and everything that was tried.

        Raises:
            ValueError: if no point costs so few calls.
        """
        scorer = self.scorer(trainer, module, data, settings)
        space, objectives, size = scorer.space, self.file.objectives, self.file.block
        assert isinstance(module, DiffusionModule)  # so says the scorer
        calls = None if self.calls is None else CallBudget.count(space, scorer.build, module.denoiser, limit=self.calls)
        halving = Halving(space, scorer, objectives, budget=self.budget, seed=self.file.seed, calls=calls)
        aims = {each.metric: each.lowest for each in objectives}
        own = {"budget": self.budget, "aims": aims} | ({} if calls is None else {"calls": calls.limit})
        ledger = ResultsFile(self.out / "tune.json", self.identity(scorer) | own)
        finished = "winners" in ledger.content and not ledger.content["failed"]  # what failed is tried again
        if true_on_all_ranks(finished and all(guidance_file(self.out, metric).is_file() for metric in aims)):
            if trainer.is_global_zero:
                self._print(ledger)
            return
        with self.watched("tune", halving.samples, ledger, scorer):
            if trainer.is_global_zero:
                ledger.write()
            found = halving.run()
        if not trainer.is_global_zero:
            return
        model = {key: value for key in ("images", "average") if (value := getattr(self.file, key)) is not None}
        model["metrics"] = scorer.about["metrics"]
        write_guidances(space, found, objectives, self.out, size=size, model=model, seed=self.file.seed + 2)
        ledger.content = all_results(space, found, objectives, size=size, calls=calls)
        if calls is not None:
            draw_front(space, found, objectives, calls, self.out / "front.png")
        ledger.write()
        self._print(ledger)

    def _print(self, ledger: ResultsFile) -> None:
        files = ", ".join(str(guidance_file(self.out, objective.metric)) for objective in self.file.objectives)
        drawn = counted(ledger.content["samples"], "sample")
        last = f"{drawn} drawn; guidance to be used with -c: {files}; all {ledger.path}"
        print("\n".join([*ledger.content["statements"], last]))
