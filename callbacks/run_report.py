"""HTML report of a run, updated while it runs; scalars in a file, settings and environment in all loggers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.loggers import log_chart_layout, log_settings, log_text, markdown_table
from callbacks.scalar_history import ScalarHistory
from lightning_guide.report.history import HISTORY, NO_METRICS, append_scalars, keep_earlier_scalars
from lightning_guide.report.metrics_file import read_facts
from lightning_guide.report.run_page import ENVIRONMENT, leaves, write_page
from lightning_guide.report.tables import environment
from lightning_guide.utils.files import atomic
from lightning_guide.utils.needs import unwritable

__all__ = ["RunReport"]


class RunReport(pl.Callback):
    """HTML report RUN/report.html, written after each validation and at the end of fit, validate and test.

    The page is that of `lightning-guide report`. All scalars of a fit are appended to RUN/report/history.jsonl, with
    any logger or none, and RUN/report/environment.json records the environment of each command. Settings and
    environment are logged as the texts `report/settings` and `report/environment`, the settings of model and data also
    as hyperparameters, in TensorBoard with the newest results; its custom scalars show each metric of all evaluations
    on one chart.

    The page shows the files of callbacks such as `MetricsReport` and `SampleGrid`; list this callback after them.
    """

    def __init__(self) -> None:
        """Nothing to configure."""
        self._charts: list[str] = []
        self._recorded = False

    def missing(self, trainer: pl.Trainer, module: Any) -> Iterator[str]:
        """Yield a sentence if the page cannot be written."""
        if trainer.is_global_zero:
            yield from unwritable(trainer.default_root_dir, type(self).__name__)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Add the file of scalars to the loggers of a fit."""
        others = [logger for logger in trainer.loggers if not isinstance(logger, ScalarHistory)]
        trainer.loggers = [*others, ScalarHistory(trainer.default_root_dir)] if stage == "fit" else others
        self._recorded = False

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Record, before the first step, the environment of training and from which step on scalars are new.

        By then the config is written, and what the run was before it went back to a checkpoint is set aside.
        """
        if self._recorded:
            return
        self._recorded = True
        self._record_environment(trainer)
        if trainer.is_global_zero:
            keep_earlier_scalars(trainer.default_root_dir)
            append_scalars(Path(trainer.default_root_dir) / HISTORY, {}, step=trainer.global_step, resumes=True)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the environment of validation, unless it is part of a fit."""
        if trainer.state.fn == "validate":
            self._record_environment(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the environment of the test."""
        self._record_environment(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the page, on process 0."""
        if not trainer.sanity_checking:
            self._write(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the page and the hparams, on process 0."""
        self._write(trainer, pl_module)
        self._log_results(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the page and the hparams, on process 0."""
        self._write(trainer, pl_module)
        self._log_results(trainer, pl_module)

    def _record_environment(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        assert trainer.state.fn is not None
        facts = environment() | {"processes": str(trainer.world_size), "precision": str(trainer.precision)}
        path = Path(trainer.default_root_dir) / ENVIRONMENT
        path.parent.mkdir(parents=True, exist_ok=True)
        known = read_facts(path)
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(known | {trainer.state.fn.value: facts}, indent=1) + "\n", encoding="utf-8")
        table = "\n".join(markdown_table([["", ""], *facts.items()]))
        log_text(trainer, "report/environment", table, step=trainer.global_step)
        for config in _configs(trainer):
            text = config.read_text(encoding="utf-8")
            quoted = "\n".join(f"    {line}" for line in text.splitlines())  # a code block in Markdown
            log_text(trainer, f"report/settings/{config.stem}", quoted, step=trainer.global_step)
        log_settings(trainer, _settings(trainer))

    def _write(self, trainer: pl.Trainer, module: Any) -> None:
        if not trainer.is_global_zero:
            return
        results = _results(module)
        metrics = dict.fromkeys(key for values in results.values() for key in values if key not in NO_METRICS)
        if [*metrics] != self._charts:
            self._charts = [*metrics]
            log_chart_layout(trainer, self._charts)
        try:
            write_page(trainer.default_root_dir)
        except (ValueError, OSError) as error:  # a damaged file or a full disk must not end a run
            rank_zero_warn(f"the page of this run was not written: {error}")

    def _log_results(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.is_global_zero:
            results = _results(module)
            flat = {f"{name}/{key}": value for name, values in results.items() for key, value in values.items()}
            log_settings(trainer, _settings(trainer), flat)


def _results(module: Any) -> Mapping[str, Mapping[str, float]]:
    """Return evaluation -> metric -> value; empty for modules without evaluations."""
    return getattr(getattr(module, "evaluations", None), "results", {})


def _settings(trainer: pl.Trainer) -> dict[str, Any]:
    """Return the settings of model and data by dotted key."""
    settings: dict[str, Any] = {}
    for config in _configs(trainer):
        loaded = yaml.safe_load(config.read_text(encoding="utf-8"))
        for part in ("seed_everything", "model", "data"):
            settings |= {key: value for key, value in leaves(loaded.get(part), part) if value is not None}
    return settings


def _configs(trainer: pl.Trainer) -> list[Path]:
    """Return the saved config of the running command; empty if it was not started from the command line."""
    assert trainer.state.fn is not None
    command = trainer.state.fn.value
    path = Path(trainer.default_root_dir) / ("config.yaml" if command == "fit" else f"config.{command}.yaml")
    return [path] if path.is_file() else []
