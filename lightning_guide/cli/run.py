"""Start a command whose words are checked: LightningCLI's, or a plain function. Imports everything."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

from jsonargparse import auto_cli
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_guide.cli.configs import named_configs
from lightning_guide.cli.explain import explain_words
from lightning_guide.cli.lightning_commands import run_lightning
from lightning_guide.cli.table import COMMANDS
from lightning_guide.runs.refused import RefusedError
from lightning_guide.runs.session import run_keys
from lightning_guide.training.monitor import TrainingDivergedError
from lightning_guide.utils.errors import explain_os_error, explain_runtime_error
from lightning_guide.utils.mistakes import arguments_of
from lightning_guide.utils.needs import MissingNeedsError
from lightning_guide.utils.parser import ConfigError, Parser, one_sentence, with_long_names, with_merged_files
from lightning_guide.utils.places import describe, place_of
from lightning_guide.utils.terminal import plain_messages

__all__ = ["run"]

_FROM_THE_START = ("validate", "test", "report", "gallery", "prompts", "import", "export", "push", "pull", "neon")


def run(words: Sequence[str]) -> None:
    """Run the command `words`; user errors end in one sentence, or a list of what is missing, and exit status 1."""
    with plain_messages():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # a command may run another
        with _left_on_signals(words[0]):
            _run(words)


@contextmanager
def _left_on_signals(command: str) -> Iterator[None]:
    """Leave at once on SIGTERM or Ctrl-C: one sentence, exit status 1, temporary files removed and locks released.

    The handlers of `GracefulStop` replace these in the loops of a fit.
    """
    owner = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process wherever it is
        if os.getpid() != owner:  # a process that this one forked
            os.kill(os.getpid(), number)
        end = "start again" if command in _FROM_THE_START else "resume"
        what = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        sys.exit(f"lightning-guide: {command} was stopped by {what}; rerun the same command to {end}")

    defaults: dict[signal.Signals, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    main = threading.current_thread() is threading.main_thread()
    handled = [number for number, default in defaults.items() if main and signal.getsignal(number) == default]
    for number in handled:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, defaults[number])


def _run(words: Sequence[str]) -> None:
    command = COMMANDS.get(words[0])
    try:
        if command is None or not command.function:
            keys = run_keys()
            run_lightning(with_merged_files(with_long_names(words)))
            return
        module, _, name = command.function.partition(":")
        function = getattr(import_module(module), name)
        keys = arguments_of(function)
        auto_cli(function, args=list(words[1:]), prog=f"lightning-guide {words[0]}", parser_class=Parser)
    except ConfigError as error:
        if os.environ.get("LIGHTNING_GUIDE_TRACEBACK"):
            raise
        said = explain_words(str(error), words, keys) if command else str(error)
        print(f"lightning-guide: error: {said} (lightning-guide {words[0]} --help)", file=sys.stderr)
        raise SystemExit(2) from None
    except (ValueError, OSError, MisconfigurationException, TrainingDivergedError) as error:
        if os.environ.get("LIGHTNING_GUIDE_TRACEBACK"):
            raise
        said = explain_os_error(error) if isinstance(error, OSError) else str(error)
        if isinstance(error, RefusedError):
            said = describe(error.mistake, place_of(error.mistake.path, named_configs(words)))
        if isinstance(error, MisconfigurationException):
            said = f"a setting under `trainer` does not fit: {said}"
        sys.exit(f"lightning-guide: error: {said if isinstance(error, MissingNeedsError) else one_sentence(said)}")
    except RuntimeError as error:
        if os.environ.get("LIGHTNING_GUIDE_TRACEBACK") or (found := explain_runtime_error(str(error))) is None:
            raise
        sys.exit(f"lightning-guide: error: {found}")
