"""The commands sweep and tune: a search file and a run, scored by the run's own trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.runs.run import QUIET, Run
from lightning_guide.runs.session import open_session
from lightning_guide.search.blocks import SampledBlocks
from lightning_guide.search.calls import CallBudget
from lightning_guide.search.config import SearchFile, SearchObjective, check_objectives, read_search
from lightning_guide.search.figures import draw_front, draw_heat_maps, draw_sensitivity
from lightning_guide.search.halving import Halving
from lightning_guide.search.rebuilt_guiders import RebuiltGuiders
from lightning_guide.search.results_file import ResultsFile, run_identity, with_identities
from lightning_guide.search.space import Space
from lightning_guide.search.sweep import COST, Swept, run_sweep, sweep_results, write_csv, write_hparams
from lightning_guide.search.tune_report import all_results, guidance_file, write_guidances
from lightning_guide.utils.config_base import check_config, merge_settings
from lightning_guide.utils.distributed import true_on_all_ranks
from lightning_guide.utils.errors import one_line
from lightning_guide.utils.explain import explain
from lightning_guide.utils.files import read_yaml
from lightning_guide.utils.parser import Parser, update_paths
from lightning_guide.utils.shipped import find_config
from lightning_guide.utils.terminal import Progress, counted

__all__ = ["Search", "Sweep", "Tune"]


_OF_THE_LOADER = ("batch_size", "num_workers", "cache")  # settings of the data that no result depends on


@dataclass
class Search(ABC):
    """Search of the file `path`, with its results in the folder `out`."""

    path: str
    out: Path

    def __post_init__(self) -> None:
        """Read the file.

        Raises:
            ValueError: naming the key that is wrong.
        """
        self.file: SearchFile = read_search(self.path)

    def start(self, run: str, configs: Sequence[str] = (), devices: int | None = None) -> None:
        """Search the run of the folder or config file `run`, with `configs` laid over it; its folder does not change.

        Raises:
            ValueError: if the configs do not fit, or the run cannot be searched.
        """
        settings = check_config(read_yaml(run), run) if find_config(run).is_file() else Run(run).config
        settings = update_paths(settings)
        for path in configs:
            settings = check_config(merge_settings(settings, update_paths(read_yaml(path))), path)
        model = {"images": self.file.images, "average": self.file.average, "metrics": self.file.metrics}
        arguments = (settings["model"].get("init_args") or {}) | {k: v for k, v in model.items() if v is not None}
        quiet = QUIET | ({} if devices is None else {"devices": devices})
        settings["trainer"] = (settings.get("trainer") or {}) | quiet
        settings["model"] = settings["model"] | {"init_args": arguments}
        file = find_config(run)
        session = open_session(settings, files=[file if file.is_file() else file / "config.yaml", *configs])
        self.run(session.trainer, session.model, session.datamodule, session.config)

    @abstractmethod
    def run(self, trainer: pl.Trainer, module: pl.LightningModule, data: Any, settings: Namespace) -> None:
        """Search, or resume the search; `settings` are the parsed config with `model` and `data`."""

    def scorer(self, trainer: pl.Trainer, module: pl.LightningModule, data: Any, settings: Namespace) -> SampledBlocks:
        """Scorer of the run; `settings` are the parsed config with `model` and `data`.

        Raises:
            ValueError: if the run cannot be searched, or an axis names no setting.
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
        evaluations = _config_data(model.get("evaluations")) or {"unguided": {}}
        name, first = next(iter(evaluations.items()))
        own = module.evaluations.evaluations[name].metrics if name in module.evaluations.names else None
        if own is None or self.file.metrics is not None:
            metrics, of_metrics = module.evaluations.metrics, _config_data(model.get("metrics"))
        else:
            metrics, of_metrics = own, first["metrics"]
        if not metrics:
            raise ValueError(f"neither the run nor {self.path} has metrics to judge by; expected some in either")
        chosen = merge_settings(first, update_paths(self.file.evaluation)) | {"metrics": None}
        base = _with_defaults(chosen, self.path)
        try:
            space = Space(base, self.file.axes)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        every = [space.evaluation(point) for point in space.points]
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--out {self.out} cannot be a folder for the results: {error.strerror}") from None
        given = _config_data(settings.get("data")) or {}
        shown = {key: value for key, value in given.get("init_args", {}).items() if key not in _OF_THE_LOADER}
        rebuilt = RebuiltGuiders(trainer.default_root_dir, self.out / "rebuilt", every)
        return SampledBlocks(
            trainer,
            module,
            data,
            space,
            folder=self.out / "blocks",
            size=self.file.block,
            build=lambda point: _evaluation(rebuilt.instead(space.evaluation(point))),
            metrics=metrics,
            rebuilt=rebuilt,
            about={
                "run": run_identity(trainer.default_root_dir),
                "average": [module.average.value, module.images],
                "data": given | {"init_args": shown},
                "metrics": of_metrics,
                "extractors": {name: [str(each) for each in metric.extractors] for name, metric in metrics.items()},
                "block": self.file.block,
            },
        )

    def identity(self, scorer: SampledBlocks) -> dict[str, Any]:
        """Everything that the results depend on."""
        space = scorer.space
        axes = {axis.name: {"path": axis.path, "values": list(axis.values)} for axis in space.axes}
        runs = {"-".join(run["weights"]): run for run in scorer.runs.values()}
        found = {**scorer.about, "evaluation": space.base, "axes": axes, "runs": runs, "seed": self.file.seed}
        return cast(dict[str, Any], with_identities(found, scorer.runs))


@dataclass
class Sweep(Search):
    """Score of every point of the grid."""

    def run(self, trainer: pl.Trainer, module: pl.LightningModule, data: Any, settings: Namespace) -> None:
        """Score every point, or those that are missing; then write tables and figures."""
        scorer = self.scorer(trainer, module, data, settings)
        space = scorer.space
        ledger = ResultsFile(self.out / "results.json", self.identity(scorer) | {"blocks": self.file.blocks})
        samples = (1 + len(space.points)) * self.file.blocks * self.file.block
        with _owner(ledger, trainer), _progress("sweep", samples, scorer):
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


@dataclass
class Tune(Search):
    """Best point found within a budget of generated samples, of those within `calls` network calls per sample."""

    budget: int
    calls: int | None = None

    def run(self, trainer: pl.Trainer, module: pl.LightningModule, data: Any, settings: Namespace) -> None:
        """Search within the budget, or resume; then write the guidances and everything that was tried.

        Raises:
            ValueError: if the file names no objectives, the budget is too small, or no point costs so few calls.
        """
        if not self.file.objectives:
            raise ValueError(f"{self.path} has no objectives; expected metric: lowest or highest")
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
        with _owner(ledger, trainer), _progress("tune", halving.samples, scorer):
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


def _owner(ledger: ResultsFile, trainer: pl.Trainer) -> AbstractContextManager[object]:
    """Lock of the results, held on rank 0 for all."""
    return ledger.lock() if trainer.is_global_zero else nullcontext()


def _progress(command: str, samples: int, scorer: SampledBlocks) -> Progress:
    """Progress of all samples of a search, shown by `scorer`, on rank 0."""
    scorer.evaluations.progress = Progress(command, samples, unit="samples", silent=not scorer.trainer.is_global_zero)
    return scorer.evaluations.progress


def _first_metric(found: Swept) -> tuple[SearchObjective, ...]:
    metrics = [key for scores in found.values() for key in scores.values if key not in COST]
    return (SearchObjective(metrics[0]),) if metrics else ()


def _config_data(node: Any) -> Any:
    """Plain data of a parsed config."""
    if isinstance(node, Namespace):
        return {key: _config_data(value) for key, value in vars(node).items()}
    if isinstance(node, dict):
        return {key: _config_data(value) for key, value in node.items()}
    return [_config_data(value) for value in node] if isinstance(node, list | tuple) else node


def _parser() -> Parser:
    parser = Parser()
    parser.add_argument("--evaluation", type=dict[str, Evaluation])
    return parser


def _with_defaults(evaluation: dict[str, Any], path: str) -> dict[str, Any]:
    """Complete `evaluation`, of the search file `path`, by all defaults.

    Raises:
        ValueError: naming the key that is wrong.
    """
    try:
        parsed = _parser().parse_object({"evaluation": {"": evaluation}})
    except ValueError as error:
        said = f"the evaluation of the search: {error}"
        raise ValueError(explain(said, evaluation, Evaluation, at=("evaluation",), files=[path], where=path)) from None
    found: dict[str, Any] = _config_data(parsed)["evaluation"][""]
    return found


def _evaluation(written: dict[str, Any]) -> Evaluation:
    """Build the evaluation of plain data; references to models are not resolved.

    Raises:
        ValueError: if a class or an argument is unknown or refuses its value.
    """
    parser = _parser()
    parsed = parser.parse_object({"evaluation": {"": written}})
    try:
        built: dict[str, Evaluation] = parser.instantiate(parsed).evaluation
    except ValueError as error:
        raise ValueError(one_line(str(error))) from None
    return built[""]
