"""Options of each command, read from the sources of their functions and of Lightning's trainer."""

from __future__ import annotations

from lightning_guide.cli.table import COMMANDS, read_signature

__all__ = ["OF_PARSER", "config_keys", "known_options", "trainer_arguments"]

OF_PARSER = frozenset({"c", "h", "config", "help", "print_config"})
TRAINER = "lightning.pytorch.trainer.trainer:Trainer"
PARTS = ("seed_everything", "trainer", "model", "data")
OBJECTS = {"model", "dataloaders", "train_dataloaders", "val_dataloaders", "datamodule"}  # built from the config


def trainer_arguments() -> list[str]:
    """Names of the arguments of Lightning's Trainer."""
    return list(read_signature(f"{TRAINER}.__init__").arguments)


def config_keys(name: str) -> list[str]:
    """Keys at the top of a config of a command of LightningCLI's."""
    return [*PARTS, *(each for each in read_signature(f"{TRAINER}.{name}").arguments if each not in OBJECTS)]


def known_options(name: str) -> set[str]:
    """First parts of the names of all options of a command, ``c`` for ``-c``."""
    function = COMMANDS[name].function
    if function:
        own = read_signature(function).arguments.values()
        return {each.name for each in own if not each.positional} | OF_PARSER - {"c"}
    return {*config_keys(name), *OF_PARSER}
