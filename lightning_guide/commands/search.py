"""Base of the commands sweep and tune: a search file and a run, scored by the run's own trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from lightning_guide.search.config import SearchFile, read_search
from lightning_guide.search.rebuilt_guiders import RebuiltGuiders
from lightning_guide.search.results_file import ResultsFile, run_identity, with_identities
from lightning_guide.search.space import Space
from lightning_guide.utils.config_base import check_config, merge_settings
from lightning_guide.utils.errors import one_line
from lightning_guide.utils.explain import explain
from lightning_guide.utils.files import read_yaml
from lightning_guide.utils.parser import Parser, update_paths
from lightning_guide.utils.shipped import find_config
from lightning_guide.utils.terminal import Progress

__all__ = ["Search"]


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

    @staticmethod
    @contextmanager
    def watched(command: str, samples: int, ledger: ResultsFile, scorer: SampledBlocks) -> Iterator[None]:
        """Hold the lock of the results for all, and show the progress of all samples, both on rank 0."""
        first = scorer.trainer.is_global_zero
        lock: AbstractContextManager[object] = ledger.lock() if first else nullcontext()
        with lock, Progress(command, samples, unit="samples", silent=not first) as progress:
            scorer.evaluations.progress = progress
            yield


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
