"""The command line: `lightning-guide COMMAND`, in a package whose first word needs neither torch nor Lightning.

`table` lists the commands, `front` answers what needs no library (help, version, typing errors), `run` starts the rest:
LightningCLI's fit, validate, test and predict (`lightning_commands`), and plain functions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from lightning_guide.cli.front import answer
from lightning_guide.cli.table import COMMANDS
from lightning_guide.utils.terminal import passing_line

__all__ = ["COMMANDS", "GuideCLI", "main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `lightning-guide`; user errors end in one sentence and exit status 1, typing errors in 2.

    With LIGHTNING_GUIDE_TRACEBACK=1 in the environment the traceback of an error is shown instead.
    """
    try:
        words = answer(list(sys.argv[1:] if arguments is None else arguments))
    except ValueError as error:
        if os.environ.get("LIGHTNING_GUIDE_TRACEBACK"):
            raise
        sys.exit(f"lightning-guide: error: {error}")
    if words:
        with passing_line(f"{words[0]} loads the libraries ..."):
            from lightning_guide.cli.run import run

        run(words)


def __getattr__(name: str) -> Any:
    """`GuideCLI`, imported with all that it needs when it is first used (PEP 562)."""
    if name == "GuideCLI":
        from lightning_guide.cli.lightning_commands import GuideCLI

        return GuideCLI
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
