"""LightningCLI's commands fit, validate, test and predict, with every class reachable by its class_path.

`fit` resumes from the newest checkpoint of the run folder if there is one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

import callbacks
from callbacks.checkpoint import check_checkpoint, checkpoint_step, newest_checkpoint
from lightning_guide.runs.session import CLI_OPTIONS, ConfigCLI
from lightning_guide.utils.files import atomic

__all__ = ["GuideCLI", "run_lightning"]


class SaveConfig(SaveConfigCallback):
    """Config of a run in its folder: `config.yaml` of a fit, `config.<command>.yaml` of other commands."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Write outside the log folder, and again by each command."""
        super().__init__(*args, **(kwargs | {"save_to_log_dir": False}))

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the file; rank 0 only."""
        command = trainer.state.fn.value if trainer.state.fn else stage
        name = "config.yaml" if command == "fit" else f"config.{command}.yaml"
        with atomic(Path(trainer.default_root_dir, name)) as temporary:
            temporary.write_text(self.parser.dump(self.config, skip_none=False), encoding="utf-8")


class GuideCLI(ConfigCLI):
    """LightningCLI with project defaults."""

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the trainer, with checkpoints, graceful stops and TensorBoard in the run folder unless configured."""
        config = self._get(self.config_init, "trainer")
        run = config.get("default_root_dir")
        if run is None:
            raise ValueError("trainer.default_root_dir is not set; expected the folder of the run, such as runs/first")
        if os.path.isfile(run):
            raise ValueError(f"trainer.default_root_dir is the file {run}; expected the folder of the run")
        if config.get("logger") in (None, True):
            newest = newest_checkpoint(run) if self.subcommand == "fit" else None
            kwargs["logger"] = TensorBoardLogger(
                run,
                name="tensorboard",
                version="",
                default_hp_metric=False,
                purge_step=checkpoint_step(newest) + 1 if newest else None,
            )
        kwargs["callbacks"] = list(config.get("callbacks") or [])
        for default in (callbacks.GracefulStop, callbacks.RunCheckpoint):
            if not any(isinstance(callback, default) for callback in kwargs["callbacks"]):
                kwargs["callbacks"].append(default())
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Resume a run that has checkpoints."""
        self._continue("fit")

    def before_validate(self) -> None:
        """Load the newest checkpoint if raw weights are to be evaluated."""
        self._raw_weights("validate")

    def before_test(self) -> None:
        """Load as for validate."""
        self._raw_weights("test")

    def before_predict(self) -> None:
        """Load as for validate; samples go to callbacks and are not gathered in memory."""
        self._raw_weights("predict")
        self.config_init["predict"]["return_predictions"] = False

    def _raw_weights(self, command: str) -> None:
        if getattr(self.model, "average", None) is None:
            self._continue(command)

    def _continue(self, command: str) -> None:
        arguments = self.config_init[command]
        arguments["weights_only"] = True
        if arguments.get("ckpt_path") is None and (newest := newest_checkpoint(self.trainer.default_root_dir)):
            rank_zero_info(f"continuing from {newest}")
            arguments["ckpt_path"] = str(newest)
        if arguments.get("ckpt_path"):
            check_checkpoint(arguments["ckpt_path"], self.model)


def run_lightning(words: Sequence[str]) -> None:
    """Run a command of LightningCLI's, such as ``fit -c CONFIG``."""
    GuideCLI(
        **CLI_OPTIONS,
        save_config_callback=SaveConfig,
        parser_kwargs={"prog": "lightning-guide"},
        args=list(words),
    )
