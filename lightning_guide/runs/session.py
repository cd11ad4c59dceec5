"""Trainer, module and datamodule of a config, built as the command line builds them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.cli import LightningCLI

from lightning_guide.utils.parser import LightningParser, PythonLightningParser, update_paths

__all__ = ["CLI_OPTIONS", "ConfigCLI", "open_session"]

TRAINER_DEFAULTS = {
    # one endless epoch, counted in steps; validation every so many of them
    "max_epochs": -1,
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    # every datamodule splits its data over the ranks itself, exactly
    "use_distributed_sampler": False,
    # gradient-based guidance needs gradients in validation
    "inference_mode": False,
}

CLI_OPTIONS: dict[str, Any] = {
    "model_class": pl.LightningModule,
    "datamodule_class": pl.LightningDataModule,
    "subclass_mode_model": True,
    "subclass_mode_data": True,
    "seed_everything_default": 0,
    "trainer_defaults": TRAINER_DEFAULTS,
    "auto_configure_optimizers": False,
    "parser_class": LightningParser,
}


class ConfigCLI(LightningCLI):
    """LightningCLI in which a checkpoint never overrides the config."""

    def _parse_ckpt_path(self) -> None:
        """Ignore hyperparameters stored in checkpoints."""


def open_session(settings: Mapping[str, Any]) -> ConfigCLI:
    """Build `trainer`, `model` and `datamodule` of `settings`, the plain data of a config; `config` is parsed.

    No checkpoint, log or config is written and no signal handled unless `settings` configure it.

    Raises:
        ValueError: naming the key, if the settings do not fit.
    """
    kept = {key: value for key, value in settings.items() if key in ("seed_everything", "trainer", "model", "data")}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        options = CLI_OPTIONS | {"parser_class": PythonLightningParser}
        return ConfigCLI(**options, run=False, save_config_callback=None, args=update_paths(kept))
