"""Command lines of scripts: a function's arguments as options; user errors end in one sentence, without a traceback."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, auto_cli

from lightning_guide.utils.errors import explain_os_error, one_line

__all__ = ["run_script"]


class _Parser(ArgumentParser):
    """Parser whose errors are one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with status 2."""
        print(f"{self.prog}: error: {one_line(message)} ({self.prog} --help)", file=sys.stderr)
        raise SystemExit(2) from ex


def run_script(functions: Callable[..., Any] | list[Callable[..., Any] | type], **options: Any) -> None:
    """Call a function with the arguments of the command line, or one of several by its name.

    With LIGHTNING_GUIDE_TRACEBACK=1 in the environment the traceback of an error is shown instead. `options` are those
    of `auto_cli`.
    """
    for category in (DeprecationWarning, FutureWarning):  # of other libraries
        warnings.simplefilter("ignore", category)
    try:
        auto_cli(functions, parser_class=_Parser, **options)
    except (ValueError, OSError) as error:
        if os.environ.get("LIGHTNING_GUIDE_TRACEBACK"):
            raise
        said = explain_os_error(error) if isinstance(error, OSError) else one_line(str(error))
        sys.exit(f"{os.path.basename(sys.argv[0])}: error: {said}")
