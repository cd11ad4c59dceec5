"""HTML report of a run, updated while it runs, with settings and environment in TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.output import tensorboard_loggers
from lightning_guide.report.run_page import ENVIRONMENT, leaves, read_facts, write_page
from lightning_guide.report.tables import environment
from lightning_guide.utils.files import atomic
from lightning_guide.utils.needs import unwritable

__all__ = ["RunReport"]


class RunReport(pl.Callback):
    """HTML report RUN/report.html, written after each validation and at the end of fit, validate and test.

    The page is that of `lightning-guide report`. RUN/report/environment.json records the environment of each command.
    Settings and environment are logged to TensorBoard as the texts `report/settings` and `report/environment`, and at
    the end the settings of model and data with the newest results as hparams.

    The page shows the files of callbacks such as `MetricsReport` and `SampleGrid`; list this callback after them.
    """

    def missing(self, trainer: pl.Trainer, module: Any) -> Iterator[str]:
        """Yield a sentence if the page cannot be written."""
        if trainer.is_global_zero:
            yield from unwritable(trainer.default_root_dir, type(self).__name__)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the environment of training."""
        self._record_environment(trainer)

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
            self._write(trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the page and the hparams, on process 0."""
        self._write(trainer)
        self._log_hparams(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the page and the hparams, on process 0."""
        self._write(trainer)
        self._log_hparams(trainer, pl_module)

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
        table = "\n".join(["| | |", "| :-- | :-- |", *[f"| {name} | {fact} |" for name, fact in facts.items()]])
        for logger in tensorboard_loggers(trainer):
            logger.experiment.add_text("report/environment", table, trainer.global_step)
            for config in _configs(trainer):
                text = config.read_text(encoding="utf-8")
                quoted = "\n".join(f"    {line}" for line in text.splitlines())  # a code block in Markdown
                logger.experiment.add_text(f"report/settings/{config.stem}", quoted, trainer.global_step)

    def _write(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        for logger in tensorboard_loggers(trainer):
            logger.experiment.flush()  # the page reads the files
        try:
            write_page(trainer.default_root_dir)
        except (ValueError, OSError) as error:  # a damaged file or a full disk must not end a run
            rank_zero_warn(f"the page of this run was not written: {error}")

    def _log_hparams(self, trainer: pl.Trainer, module: Any) -> None:
        if not trainer.is_global_zero:
            return
        results: Mapping[str, Mapping[str, float]] = getattr(getattr(module, "evaluations", None), "results", {})
        metrics = {f"final/{name}/{key}": value for name, values in results.items() for key, value in values.items()}
        settings: dict[str, Any] = {}
        for config in _configs(trainer)[:1]:
            loaded = yaml.safe_load(config.read_text(encoding="utf-8"))
            for part in ("seed_everything", "model", "data"):
                settings |= {key: value for key, value in leaves(loaded.get(part), part) if value is not None}
        for logger in tensorboard_loggers(trainer):
            logger.log_hyperparams(settings, metrics, trainer.global_step)


def _configs(trainer: pl.Trainer) -> list[Path]:
    """Return the saved config of the running command; empty if it was not started from the command line."""
    assert trainer.state.fn is not None
    command = trainer.state.fn.value
    path = Path(trainer.default_root_dir) / ("config.yaml" if command == "fit" else f"config.{command}.yaml")
    return [path] if path.is_file() else []
