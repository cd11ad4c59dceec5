"""The searches as commands: prepared from two files, run on a trainer that the command line has made."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from argparse import ArgumentError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

import lightning_guide.evaluation  # noqa: F401  # short class names are found among classes that are imported
import lightning_guide.guidance  # noqa: F401
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.search.blocks import SampledBlocks
from lightning_guide.search.config import SearchFile, SearchObjective, check_objectives, read_search
from lightning_guide.search.figures import draw_heat_maps, draw_sensitivity
from lightning_guide.search.halving import Halving
from lightning_guide.search.rebuilt_guiders import RebuiltGuiders
from lightning_guide.search.results_file import ResultsFile, run_identity
from lightning_guide.search.space import Space, merge_settings
from lightning_guide.search.sweep import COST, Swept, run_sweep, sweep_results, write_csv, write_hparams
from lightning_guide.search.tune_report import all_results, guidance_file, write_guidances
from lightning_guide.utils.distributed import true_on_all_ranks
from lightning_guide.utils.errors import one_line

__all__ = ["Search", "Sweep", "Tune"]


_OF_THE_LOADER = ("batch_size", "num_workers", "cache")  # settings of the data that no result depends on


@dataclass
class Search(ABC):
    """A search of the file `path` with results in the folder `out`."""

    path: str
    out: Path

    def __post_init__(self) -> None:
        """Reads the file.

        Raises:
            ValueError: naming what is wrong in it.
        """
        self.file: SearchFile = read_search(self.path)

    @property
    def words(self) -> list[str]:
        """What `lightning-guide test` has to be told: nothing of the run's folder is touched."""
        quiet = ["--trainer.callbacks=[]", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
        said = {"images": self.file.images, "average": self.file.average}
        model = [f"--model.{key}={value}" for key, value in said.items() if value is not None]
        if self.file.metrics is not None:  # in place of those of the run, not laid over them
            model += ["--model.metrics={}", f"--model.metrics={json.dumps(self.file.metrics)}"]
        return [*quiet, "--trainer.enable_model_summary=false", *model]

    @abstractmethod
    def run(self, trainer: pl.Trainer, module: pl.LightningModule, data: Any, settings: Namespace) -> None:
        """Searches, or goes on with it; `settings` are the config, `model` and `data`."""

    def begin(self, trainer: pl.Trainer, module: pl.LightningModule, data: Any, settings: Namespace) -> SampledBlocks:
        """The scorer of the run; `settings` are the config, `model` and `data`.

        Raises:
            ValueError: if the run cannot be searched, or an axis leads nowhere.
        """
        if not isinstance(module, DiffusionModule):
            raise ValueError(f"a search needs a run of DiffusionModule, this is one of {type(module).__name__}")
        if module.average is None:
            raise ValueError(f"a search draws from averages, the run has average null; expected average in {self.path}")
        if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
            raise ValueError("a search needs the strategy ddp; ddp_spawn takes the sums with it")
        if self.out.resolve() == Path(trainer.default_root_dir).resolve():
            raise ValueError(f"{self.out} is the folder of the run itself; expected one for the results, as --out")
        if any((self.out / part).exists() for part in ("checkpoints", "snapshots", "index.json")):
            raise ValueError(f"{self.out} is a folder of a run or of snapshots; expected one for the results, as --out")
        model = settings.model.init_args
        evaluations = _plain(model.get("evaluations")) or {"unguided": {}}
        name, first = next(iter(evaluations.items()))
        own = module.evaluations.evaluations[name].metrics if name in module.evaluations.names else None
        if own is None or self.file.metrics is not None:
            metrics, of_metrics = module.evaluations.metrics, _plain(model.get("metrics"))
        else:
            metrics, of_metrics = own, first["metrics"]
        if not metrics:
            raise ValueError(f"neither the run nor {self.path} has metrics to judge by; expected some in either")
        space = Space(_written_out(merge_settings(first, self.file.evaluation) | {"metrics": None}), self.file.axes)
        every = [space.evaluation(place) for place in space.places]
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--out {self.out} cannot be a folder for the results: {error.strerror}") from None
        given = _plain(settings.get("data")) or {}
        shown = {key: value for key, value in given.get("init_args", {}).items() if key not in _OF_THE_LOADER}
        rebuilt = RebuiltGuiders(trainer.default_root_dir, self.out / "rebuilt", every)
        return SampledBlocks(
            trainer,
            module,
            data,
            space,
            folder=self.out / "blocks",
            size=self.file.block,
            build=lambda place: _evaluation(rebuilt.instead(space.evaluation(place))),
            metrics=metrics,
            rebuilt=rebuilt,
            about={
                "run": run_identity(trainer.default_root_dir),
                "average": [module.average, module.images],
                "data": given | {"init_args": shown},
                "metrics": of_metrics,
                "extractors": {name: [str(each) for each in metric.extractors] for name, metric in metrics.items()},
                "block": self.file.block,
            },
        )

    def identity(self, scorer: SampledBlocks) -> dict[str, Any]:
        """What the results depend on."""
        space = scorer.space
        return {
            **scorer.about,
            "evaluation": space.base,
            "axes": {axis.name: {"path": axis.path, "values": list(axis.values)} for axis in space.axes},
            "runs": scorer.runs,
            "seed": self.file.seed,
        }


@dataclass
class Sweep(Search):
    """Every point of the grid."""

    def run(self, trainer: pl.Trainer, module: pl.LightningModule, data: Any, settings: Namespace) -> None:
        """Sweeps, or goes on with it; then tables and figures."""
        scorer = self.begin(trainer, module, data, settings)
        space = scorer.space
        ledger = ResultsFile(self.out / "results.json", self.identity(scorer) | {"blocks": self.file.blocks})
        run_sweep(space, scorer, ledger, self.file.objectives, blocks=self.file.blocks, seed=self.file.seed)
        if not trainer.is_global_zero:
            return
        found = sweep_results(space, ledger)
        objectives = self.file.objectives or _first_metric(found)
        for scores in found.values():
            check_objectives(objectives, scores)
        failed = {n: point["failed"] for n, point in ledger.content["points"].items() if "failed" in point}
        write_csv(space, found, failed, self.out / "results.csv")
        write_hparams(space, found, self.out / "tensorboard")
        draw_sensitivity(space, found, objectives, self.out / "sensitivity.png")
        draw_heat_maps(space, found, objectives, self.out / "averages.png")
        print(f"{len(found)} points scored, {len(failed)} failed: {self.out / 'results.csv'}")


@dataclass
class Tune(Search):
    """A good point within a budget of generated samples."""

    budget: int

    def run(self, trainer: pl.Trainer, module: pl.LightningModule, data: Any, settings: Namespace) -> None:
        """Tunes, or goes on with it; then the guidances and all that was tried.

        Raises:
            ValueError: if the file names nothing to look for, or the budget is too small.
        """
        if not self.file.objectives:
            raise ValueError(f"{self.path} has no objectives; expected metric: lowest or highest")
        scorer = self.begin(trainer, module, data, settings)
        space, objectives, size = scorer.space, self.file.objectives, self.file.block
        halving = Halving(space, scorer, objectives, budget=self.budget, seed=self.file.seed)
        aims = {each.metric: each.lowest for each in objectives}
        ledger = ResultsFile(self.out / "tune.json", self.identity(scorer) | {"budget": self.budget, "aims": aims})
        finished = "winners" in ledger.content and not ledger.content["failed"]  # what failed is tried again
        if true_on_all_ranks(finished and all(guidance_file(self.out, metric).is_file() for metric in aims)):
            if trainer.is_global_zero:
                self._say(ledger)
            return
        if trainer.is_global_zero:
            ledger.write()
        found = halving.run()
        if not trainer.is_global_zero:
            return
        model = {key: value for key in ("images", "average") if (value := getattr(self.file, key)) is not None}
        model["metrics"] = scorer.about["metrics"]
        write_guidances(space, found, objectives, self.out, size=size, model=model, seed=self.file.seed + 2)
        ledger.content = all_results(space, found, objectives, size=size)
        ledger.write()
        self._say(ledger)

    @staticmethod
    def _say(ledger: ResultsFile) -> None:
        print("\n".join([*ledger.content["statements"], f"{ledger.content['samples']} samples drawn: {ledger.path}"]))


def _first_metric(found: Swept) -> tuple[SearchObjective, ...]:
    metrics = [key for scores in found.values() for key in scores.values if key not in COST]
    return (SearchObjective(metrics[0]),) if metrics else ()


def _plain(node: Any) -> Any:
    """Plain data of a parsed config."""
    if isinstance(node, Namespace):
        return {key: _plain(value) for key, value in vars(node).items()}
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    return [_plain(value) for value in node] if isinstance(node, list | tuple) else node


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--evaluation", type=dict[str, Evaluation])
    return parser


def _written_out(evaluation: dict[str, Any]) -> dict[str, Any]:
    """`evaluation` with all defaults.

    Raises:
        ValueError: naming what is wrong in it.
    """
    try:
        parsed = _parser().parse_object({"evaluation": {"": evaluation}})
    except (ArgumentError, ValueError) as error:
        raise ValueError(f"the evaluation of the search: {one_line(str(error))}") from None
    found: dict[str, Any] = _plain(parsed)["evaluation"][""]
    return found


def _evaluation(written: dict[str, Any]) -> Evaluation:
    """The evaluation that plain data describe, references to models not yet resolved.

    Raises:
        ValueError: if a class or an argument is unknown or refuses its value.
    """
    parser = _parser()
    try:
        parsed = parser.parse_object({"evaluation": {"": written}})
        built: dict[str, Evaluation] = parser.instantiate(parsed).evaluation
    except (ArgumentError, ValueError) as error:
        raise ValueError(one_line(str(error))) from None
    return built[""]
