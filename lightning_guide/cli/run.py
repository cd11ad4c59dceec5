"""Start a command whose words are checked: LightningCLI's, or a plain function. Imports everything."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from jsonargparse import auto_cli
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_guide.cli.lightning_commands import run_lightning
from lightning_guide.cli.table import COMMANDS
from lightning_guide.training.monitor import TrainingDivergedError
from lightning_guide.utils.errors import explain_os_error, explain_runtime_error
from lightning_guide.utils.parser import Parser, one_sentence

__all__ = ["run"]


def run(words: Sequence[str]) -> None:
    """Run the command `words`; user errors end in one sentence and exit status 1."""
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # a command may run another
    try:
        command = COMMANDS.get(words[0])
        if command is None or not command.function:
            run_lightning(words)
            return
        module, _, name = command.function.partition(":")
        function = getattr(import_module(module), name)
        auto_cli(function, args=list(words[1:]), prog=f"lightning-guide {words[0]}", parser_class=Parser)
    except (ValueError, OSError, MisconfigurationException, TrainingDivergedError) as error:
        if os.environ.get("LIGHTNING_GUIDE_TRACEBACK"):
            raise
        said = explain_os_error(error) if isinstance(error, OSError) else str(error)
        sys.exit(f"lightning-guide: error: {one_sentence(said)}")
    except RuntimeError as error:
        if os.environ.get("LIGHTNING_GUIDE_TRACEBACK") or (found := explain_runtime_error(str(error))) is None:
            raise
        sys.exit(f"lightning-guide: error: {found}")
