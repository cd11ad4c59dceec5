"""Trainer, module and datamodule of a config, built as the command line builds them."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_guide.runs.refused import RefusedError, find_refused
from lightning_guide.utils.explain import explain
from lightning_guide.utils.mistakes import Keys, arguments_of
from lightning_guide.utils.parser import ConfigError, LightningParser, Parser, one_sentence, update_paths
from lightning_guide.utils.places import describe, place_of

__all__ = ["CLI_OPTIONS", "ConfigCLI", "isolated", "open_data", "open_session", "run_keys"]

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

    def instantiate_classes(self) -> None:
        """Build trainer, model and data.

        Raises:
            RefusedError: for an object inside them that refuses its arguments.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            config = self.config[self.subcommand] if self.subcommand else self.config
            for part in ("model", "data"):
                if mistake := find_refused(config.get(part), str(error), (part,)):
                    raise RefusedError(describe(mistake), mistake) from error
            raise


def run_keys() -> Keys:
    """Return the keys of the config of a run, with their types; those of one command are left out."""
    parts = {"trainer": arguments_of(pl.Trainer), "model": pl.LightningModule, "data": pl.LightningDataModule}
    return Keys("the config of a run", {"seed_everything": bool | int, **parts}, open=True)


def open_session(settings: Mapping[str, Any], *, files: Sequence[str | Path] = ()) -> ConfigCLI:
    """Build `trainer`, `model` and `datamodule` of `settings`, the plain data of a config; `config` is parsed.

    No checkpoint, log or config is written and no signal handled unless `settings` configure it. The `files` that the
    settings were read from are named in errors.

    Raises:
        ValueError: naming the key, if the settings do not fit.
    """
    kept = {key: value for key, value in settings.items() if key in ("seed_everything", "trainer", "model", "data")}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        warnings.filterwarnings("ignore", r"\s*Unable to serialize instance")  # settings may hold objects
        try:
            return ConfigCLI(
                **CLI_OPTIONS,
                run=False,
                save_config_callback=None,
                load_from_checkpoint_support=False,  # for which the config would be written once more
                args=update_paths(kept),
            )
        except ConfigError as error:
            raise ValueError(explain(str(error), update_paths(kept), run_keys(), files=files)) from None
        except RefusedError as error:
            raise ValueError(describe(error.mistake, place_of(error.mistake.path, files))) from None
        except (ValueError, MisconfigurationException) as error:
            raise ValueError(one_sentence(str(error))) from None


def open_data(settings: Mapping[str, Any]) -> Any:
    """Build the datamodule of `settings` alone, for which no device of the config is needed.

    Raises:
        ValueError: naming the key, if the settings do not fit.
    """
    parser = Parser()
    parser.add_argument("--data", type=pl.LightningDataModule, required=True)
    kept = update_paths({key: value for key, value in settings.items() if key == "data"})
    try:
        return parser.instantiate(parser.parse_object(kept)).data
    except ConfigError as error:
        raise ValueError(explain(str(error), kept, run_keys())) from None
    except ValueError as error:
        raise ValueError(one_sentence(str(error))) from None


@contextmanager
def isolated() -> Iterator[None]:
    """Keep random states, the seed in the environment and the level of Lightning's loggers, which are silent inside.

    Raises:
        ValueError: in place of an error of Lightning's about its settings.
    """
    seeds = {name: os.environ.get(name) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    loggers = {logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")}
    levels = {logger: logger.level for logger in loggers}
    failure: BaseException | None = None
    for logger, level in levels.items():
        logger.setLevel(max(level, logging.WARNING))
    with isolate_rng(), warnings.catch_warnings():  # which keeps nothing after an error
        warnings.filterwarnings("ignore", r"`isinstance\(treespec")  # Lightning 2.6 with torch 2.11 and later
        try:
            yield
        except MisconfigurationException as error:
            failure = ValueError(one_sentence(str(error)))
        except BaseException as error:
            failure = error
    for logger, level in levels.items():
        logger.setLevel(level)
    for name, value in seeds.items():
        os.environ.pop(name, None)
        os.environ.update({} if value is None else {name: value})
    if failure is not None:
        raise failure
