"""Where callbacks put what they make: a folder of the run, and TensorBoard."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger

__all__ = ["boards", "chosen_folder"]


def chosen_folder(trainer: pl.Trainer, folder: str | None, *, default: str = "report") -> Path:
    """`folder`, or `default` in the folder of the run if None."""
    return Path(trainer.default_root_dir) / default if folder is None else Path(folder)


def boards(trainer: pl.Trainer) -> list[TensorBoardLogger]:
    """Every TensorBoard logger there is."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
