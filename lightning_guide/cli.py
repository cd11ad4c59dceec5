"""The command line: `lightning-guide fit | validate | test | predict` and further commands.

The first four are LightningCLI's, with every class reachable by its class_path; the others (`COMMANDS`) are plain
functions. `fit` resumes from the newest checkpoint of the run folder if there is one.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import auto_cli
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

import callbacks
from callbacks.checkpoint import check_checkpoint, checkpoint_step, newest_checkpoint
from datamodules.commands.convert import convert
from datamodules.commands.encode import encode
from lightning_guide.commands.averages import neon, reconstruct
from lightning_guide.commands.gallery import gallery
from lightning_guide.commands.init import init
from lightning_guide.commands.search import Sweep, Tune
from lightning_guide.commands.statistics import reference_statistics
from lightning_guide.report.run_page import report
from lightning_guide.runs.edm2_import import import_snapshot
from lightning_guide.runs.hub import export, pull, push
from lightning_guide.runs.session import CLI_OPTIONS, ConfigCLI
from lightning_guide.training.monitor import TrainingDivergedError
from lightning_guide.utils.errors import explain_runtime_error
from lightning_guide.utils.files import check_config_files
from lightning_guide.utils.parser import Parser, one_sentence
from lightning_guide.utils.shipped import with_shipped_configs

__all__ = ["COMMANDS", "GuideCLI", "main"]


def sweep(run: str, search: str, *, out: str, configs: list[str] | None = None, devices: int | None = None) -> None:
    """Score every point of a grid over the same samples: tables, curves and maps. Resumes if interrupted.

    Args:
        run: folder of the finished run, or its config.
        search: file of the settings that vary, such as configs/search/autoguidance.yaml.
        out: folder of the results.
        configs: files laid over the run's config.
        devices: number of processes; default: as in the config.
    """
    Sweep(search, Path(out)).start(run, configs or [], devices)


def tune(
    run: str, search: str, *, budget: int, out: str, configs: list[str] | None = None, devices: int | None = None
) -> None:
    """Find a good point of a grid with few samples, and write it as a guidance to be used with -c. Resumes.

    Args:
        run: folder of the finished run, or its config.
        search: file of the settings that vary and of the objectives, such as configs/search/autoguidance.yaml.
        budget: how many images may be generated.
        out: folder of the results.
        configs: files laid over the run's config.
        devices: number of processes; default: as in the config.
    """
    Tune(search, Path(out), budget).start(run, configs or [], devices)


COMMANDS: dict[str, Callable[..., Any]] = {
    "init": init,
    "reconstruct": reconstruct,
    "convert": convert,
    "encode": encode,
    "statistics": reference_statistics,
    "report": report,
    "gallery": gallery,
    "neon": neon,
    "sweep": sweep,
    "tune": tune,
    "import": import_snapshot,
    "export": export,
    "push": push,
    "pull": pull,
}


_DESCRIPTION = "Train diffusion models, keep earlier snapshots as guiders, sample and evaluate under guidance. " + (
    f"Further commands: {', '.join(COMMANDS)} (lightning-guide COMMAND --help)."
)


class SaveConfig(SaveConfigCallback):
    """Config of a run in its folder: `config.yaml` of a fit, `config.<command>.yaml` of other commands."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Write outside the log folder, and again by each command."""
        super().__init__(*args, **(kwargs | {"save_to_log_dir": False}))

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the file; rank 0 only."""
        command = trainer.state.fn.value if trainer.state.fn else stage
        os.makedirs(trainer.default_root_dir, exist_ok=True)
        name = "config.yaml" if command == "fit" else f"config.{command}.yaml"
        self.parser.save(
            self.config, os.path.join(trainer.default_root_dir, name), skip_none=False, overwrite=True, multifile=False
        )


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


def _lightning(arguments: Sequence[str]) -> None:
    """Run a subcommand of Lightning's.

    Raises:
        ValueError: if a config gives a key twice: the parser would take the last of both.
    """
    check_config_files(arguments)
    GuideCLI(
        **CLI_OPTIONS,
        save_config_callback=SaveConfig,
        parser_kwargs={"prog": "lightning-guide", "description": _DESCRIPTION},
        args=arguments,  # type: ignore[arg-type]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `lightning-guide`; user errors end in one sentence and exit status 1.

    With LIGHTNING_GUIDE_TRACEBACK=1 in the environment the traceback is shown instead.
    """
    words = with_shipped_configs(sys.argv[1:] if arguments is None else arguments)
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # a command may run another
    try:
        if words and words[0] in COMMANDS:
            auto_cli(COMMANDS[words[0]], args=words[1:], prog=f"lightning-guide {words[0]}", parser_class=Parser)
            return
        _lightning(words)
    except (ValueError, OSError, MisconfigurationException, TrainingDivergedError) as error:
        if os.environ.get("LIGHTNING_GUIDE_TRACEBACK"):
            raise
        sys.exit(f"lightning-guide: error: {one_sentence(str(error))}")
    except RuntimeError as error:
        if os.environ.get("LIGHTNING_GUIDE_TRACEBACK") or (found := explain_runtime_error(str(error))) is None:
            raise
        sys.exit(f"lightning-guide: error: {found}")


if __name__ == "__main__":
    main()
