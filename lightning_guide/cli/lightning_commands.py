"""LightningCLI's commands fit, validate, test and predict, with every class reachable by its class_path.

`fit` resumes from the newest checkpoint of the run folder if there is one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

import callbacks
from callbacks.progress import NamedProgress
from lightning_guide.cli.closing import Results
from lightning_guide.cli.configs import named_configs
from lightning_guide.cli.replaced import replaced_entries
from lightning_guide.runs.checkpoints import check_checkpoint, newest_checkpoint
from lightning_guide.runs.log_folders import use_own_folder
from lightning_guide.runs.session import CLI_OPTIONS, ConfigCLI
from lightning_guide.utils.files import STALE, atomic, remove_temporary
from lightning_guide.utils.needs import unwritable
from lightning_guide.utils.run_places import holds_models, run_of_config
from lightning_guide.utils.terminal import show

__all__ = ["GuideCLI", "run_lightning"]


class SaveConfig(SaveConfigCallback, Checkpoint):
    """Config of a run in its folder: `config.yaml` of a fit, `config.<command>.yaml` of other commands.

    That of a fit is written when training begins, so that it says what happened: after everything that may refuse it,
    and, being a `Checkpoint` in Lightning's order, after `RunCheckpoint` has set aside what the run was.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Write outside the log folder, and again by each command."""
        super().__init__(*args, **(kwargs | {"save_to_log_dir": False}))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the config of other commands than fit."""
        if stage != "fit":
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the config of a fit."""
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the file; rank 0 only."""
        command = trainer.state.fn.value if trainer.state.fn else stage
        name = "config.yaml" if command == "fit" else f"config.{command}.yaml"
        remove_temporary(trainer.default_root_dir, name, seconds=STALE)
        with atomic(Path(trainer.default_root_dir, name)) as temporary:
            temporary.write_text(self.parser.dump(self.config, skip_unset=False), encoding="utf-8")


class GuideCLI(ConfigCLI):
    """LightningCLI with project defaults."""

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the trainer, with checkpoints, graceful stops and TensorBoard in the run folder unless configured."""
        self._steps: dict[str, int] = {}  # of checkpoints that were checked
        config = self._get(self.config_init, "trainer")
        run = config.get("default_root_dir")
        if run is None:
            raise ValueError("trainer.default_root_dir is not set; expected the folder of the run, such as runs/first")
        if os.path.isfile(run):
            raise ValueError(f"trainer.default_root_dir is the file {run}; expected the folder of the run")
        self._check_writable(run, config.get("callbacks") or [])
        kwargs["logger"] = False if (own := config.get("logger") in (None, True)) else config["logger"]
        kwargs["callbacks"] = list(config.get("callbacks") or [])
        for default in (callbacks.GracefulStop, callbacks.RunCheckpoint, callbacks.RunLock):
            if not any(isinstance(callback, default) for callback in kwargs["callbacks"]):
                kwargs["callbacks"].append(default())
        self._add_output(config, kwargs)
        trainer = super().instantiate_trainer(**kwargs)
        for callback in trainer.callbacks if self.subcommand == "fit" else ():  # type: ignore[attr-defined]
            if isinstance(callback, callbacks.RunLock):
                callback.acquire(trainer)  # before any file of the run is read or written
        if own and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            first = self._first_step(run)
            trainer.logger = TensorBoardLogger(
                run, name="tensorboard", version="", default_hp_metric=False, purge_step=first
            )
        for logger in trainer.loggers:
            use_own_folder(logger, str(self.subcommand))
        return trainer

    def _add_output(self, config: Any, kwargs: dict[str, Any]) -> None:
        """Add what shows and writes results, unless the config has it."""
        chosen = kwargs["callbacks"]
        if config.get("enable_progress_bar") is not False and not _any(chosen, pl.callbacks.ProgressBar):
            chosen.insert(0, NamedProgress())  # first, so that others print below its last state
        if not _any(chosen, pl.callbacks.ModelSummary):
            kwargs["enable_model_summary"] = False
        shown = self.subcommand in ("validate", "test") or not hasattr(self.model, "evaluations")
        if shown and not _any(chosen, callbacks.MetricsReport):
            chosen.append(callbacks.MetricsReport())
        if self.subcommand == "predict" and not _any(
            chosen, (callbacks.SampleWriter, pl.callbacks.BasePredictionWriter)
        ):
            chosen.append(callbacks.SampleWriter())

    def _check_writable(self, run: str, chosen: Sequence[pl.Callback]) -> None:
        """Refuse folders that cannot be written, before anything is drawn; a fit checks those of callbacks later.

        Raises:
            ValueError: naming the folder.
        """
        folders = [] if self.subcommand == "fit" else [getattr(each, "folder", None) for each in chosen]
        for folder in dict.fromkeys([run, *(each for each in folders if isinstance(each, str | Path))]):
            for sentence in unwritable(folder, str(self.subcommand)):
                what = "the run" if self.subcommand == "fit" else "the results"
                raise ValueError(
                    f"{sentence}; expected another folder for {what}, as --trainer.default_root_dir FOLDER"
                )

    def _run_subcommand(self, subcommand: str) -> None:
        """Run a command; one that a signal ends says which evaluations were finished."""
        try:
            super()._run_subcommand(subcommand)  # Lightning waits for each weight that it moves
        except SystemExit as stop:
            if hasattr(self, "_results") and isinstance(stop.code, str) and (finished := self._results.finished()):
                stop.code = f"{stop.code}; {finished}"
            raise

    def _begin(self, command: str) -> None:
        """Say what begins, and remember what is there, to say at the end what was written."""
        parameters = sum(each.numel() for each in self.model.parameters())
        processes = f", {self.trainer.world_size} processes" if self.trainer.world_size > 1 else ""
        where = f"on {self.trainer.strategy.root_device.type}{processes}: {self.trainer.default_root_dir}"
        rank_zero_info(f"{command} of {parameters:,} parameters {where}" if parameters else f"{command} {where}")
        self._results = Results(self.trainer, command)

    def _end(self) -> None:
        """Say where the results lie."""
        if self.trainer.is_global_zero:
            show(f"{self._results.line()}\n")

    after_validate = after_test = after_predict = _end

    def after_fit(self) -> None:
        """Say where the results lie; a fit that a signal stopped ends with status 1, so that no script continues."""
        self._end()
        if self._results.stopped:
            sys.exit(1)

    def _first_step(self, run: str) -> int | None:
        """Return the step from which on earlier curves are replaced: 0 if a fit starts, None for other commands."""
        if self.subcommand != "fit":
            return None
        loaded = self._chosen_checkpoint(run)
        return 0 if loaded is None else self._step_of(loaded) + 1

    def _step_of(self, checkpoint: str) -> int:
        """Check the file that the command loads, once, and return its step."""
        if checkpoint not in self._steps:
            content = check_checkpoint(checkpoint, self.model, training=self.subcommand == "fit")
            self._steps[checkpoint] = int(content.get("global_step", 0))
        return self._steps[checkpoint]

    def _chosen_checkpoint(self, run: str) -> str | None:
        """Return --ckpt_path, or the newest checkpoint of the run; None if it has none.

        Raises:
            ValueError: for a keyword of Lightning's that means nothing here.
        """
        chosen, newest = self._get(self.config_init, "ckpt_path"), newest_checkpoint(run)
        if chosen == "last" and newest is None:
            raise ValueError(f"--ckpt_path is last, but {run} holds no checkpoint; expected a run that has some")
        if chosen in ("best", "hpc") or str(chosen).startswith("registry"):
            raise ValueError(
                f"--ckpt_path is {chosen}, which this library does not keep; expected a file such as "
                f"{newest or f'{run}/checkpoints/step-N.ckpt'}, or last for the newest"
            )
        if chosen not in (None, "last"):
            return str(chosen)
        return None if newest is None else str(newest)

    def before_fit(self) -> None:
        """Resume a run that has checkpoints."""
        self._begin("fit")
        self._load("fit")

    def before_validate(self) -> None:
        """Find the run; load --ckpt_path, or the newest checkpoint if raw weights are to be evaluated."""
        self._place("validate")
        self._begin("validate")
        self._load("validate")
        self.config_init["validate"]["verbose"] = False  # MetricsReport prints one table

    def before_test(self) -> None:
        """Find and load as for validate."""
        self._place("test")
        self._begin("test")
        self._load("test")
        self.config_init["test"]["verbose"] = False

    def before_predict(self) -> None:
        """Find and load as for validate; samples go to callbacks and are not gathered in memory."""
        self._place("predict")
        self._begin("predict")
        self._load("predict")
        self.config_init["predict"]["return_predictions"] = False

    def _place(self, command: str) -> None:
        """Evaluate the run of the config if `trainer.default_root_dir` is a folder for the results alone."""
        runs = [run for file in self.config_init[command].get("config") or () if (run := run_of_config(str(file)))]
        if runs and not holds_models(self.trainer.default_root_dir) and hasattr(self.model, "evaluations"):
            self.model.run = runs[-1]

    def _load(self, command: str) -> None:
        arguments = self.config_init[command]
        arguments["weights_only"] = True
        raw = command == "fit" or getattr(self.model, "average", None) is None
        if not raw:
            if arguments.get("ckpt_path") is not None:
                raise ValueError(
                    f"--ckpt_path names the raw weights of a checkpoint, but {command} evaluates an average of the "
                    f"run's snapshots (average: {self.model.average}); add --model.average null for the checkpoint, or "
                    "--model.images N for the average after N images"
                )
            return
        arguments["ckpt_path"] = self._chosen_checkpoint(
            str(getattr(self.model, "run", None) or self.trainer.default_root_dir)
        )
        if arguments["ckpt_path"]:
            self._step_of(arguments["ckpt_path"])
            rank_zero_info(f"{'continuing from' if command == 'fit' else 'loading'} {arguments['ckpt_path']}")
        elif command != "fit" and (own := getattr(self.model, "denoiser", None)) is not None and own.origin is None:
            rank_zero_info(f"there is no checkpoint of the run: {command} uses the weights as the config builds them")


def _any(found: Sequence[pl.Callback], kinds: type | tuple[type, ...]) -> bool:
    """Return whether a callback is of one of the kinds."""
    return any(isinstance(each, kinds) for each in found)


def run_lightning(words: Sequence[str]) -> None:
    """Run a command of LightningCLI's, such as ``fit -c CONFIG``; say first what one config drops of another."""
    for sentence in replaced_entries(list(named_configs(words))):
        rank_zero_info(sentence)
    commands = GuideCLI.subcommands()

    class OneCommand(GuideCLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            """Return the command alone: a parser of all others would take longer to build than to use."""
            return {words[0]: commands[words[0]]} if words and words[0] in commands else commands

    OneCommand(
        **CLI_OPTIONS,
        save_config_callback=SaveConfig,
        parser_kwargs={"prog": "lightning-guide"},
        args=list(words),
    )
