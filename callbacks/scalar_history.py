"""Scalars of a fit in a file of the run, whatever other loggers there are: the curves of the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightning_guide.report.history import HISTORY, append_scalars

__all__ = ["ScalarHistory"]


class ScalarHistory(Logger):
    """Logger of scalars to RUN/report/history.jsonl; images, texts and settings have files of their own."""

    name = version = ""  # no folder below that of the run

    def __init__(self, run: str | Path) -> None:
        """Log to the run folder `run`."""
        super().__init__()
        self.run = Path(run)

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.run)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line."""
        append_scalars(self.run / HISTORY, metrics, step=step or 0)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the settings are in config.yaml."""
