"""Messages and progress of commands, on a terminal and in the log of a batch system."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TextIO

__all__ = ["Progress", "counted", "format_duration", "is_terminal", "passing_line", "plain_messages", "show"]

ERASE = "\r\x1b[2K"  # the line of a progress bar
REDRAW = 0.1  # seconds between two states of a bar
FIRST_LINE, SHARE = 10.0, 0.05  # in a log: seconds before the first line, and between lines as a share of the time
WIDTH = 16  # of the bar
SETTLED = 3, 1.0, 0.05  # updates, and seconds or share of all units, before the time that is left is estimated
HARMLESS = (
    "Total length of .* is zero",  # data without held-out examples
    "predict returned None",  # samples that were written before an interruption
    "Grad strides do not match bucket view strides",  # weights of 1x1 convolutions under DDP
)


def is_terminal(stream: TextIO) -> bool:
    """Return whether lines of `stream` can be rewritten: a terminal other than TERM=dumb."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def show(text: str, stream: TextIO | None = None) -> None:
    """Write `text` to `stream`, by default stdout; a pipe that nobody reads any more stops nothing."""
    stream = stream or sys.stdout
    with suppress(OSError):
        stream.write(text)
        stream.flush()


@contextmanager
def passing_line(text: str) -> Iterator[None]:
    """Show `text` on stderr for the time of the context; on a terminal alone, and by the first process of a run."""
    shown = is_terminal(sys.stderr) and "LOCAL_RANK" not in os.environ
    if shown:
        show(text, sys.stderr)
    try:
        yield
    finally:
        if shown:
            show(ERASE, sys.stderr)


def format_duration(seconds: float) -> str:
    """Format a duration as minutes:seconds or hours:minutes:seconds.

    Examples:
        >>> format_duration(75), format_duration(36001)
        ('1:15', '10:00:01')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun; `plural` if it is not the noun with an s.

    Examples:
        >>> counted(1, "shard"), counted(1200, "class", "classes")
        ('1 shard', '1,200 classes')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


class Progress:
    """Progress of `total` units on stderr, with the time that is left.

    On a terminal it is one line that is rewritten and erased at the end. Elsewhere it is a line after ten seconds and
    then each time that another twentieth of the time has passed, at least half a minute.

    The time that is left is estimated from the pace after the first update, which has the time of all preparations,
    and shown once a few updates and a second, or a twentieth of all units, have passed.
    """

    def __init__(self, what: str, total: int | None, *, unit: str, done: float = 0, silent: bool = False) -> None:
        """Begin with `done` units, which took no time; `total` None: unknown. `silent`: as on ranks other than 0."""
        self.what, self.total, self.unit, self.note, self.silent = what, total, unit, "", silent
        self._first = self._done = done
        self._start = time.monotonic()
        self._updates, self._paced = 0, (self._start, done)  # time and units at the first update
        self._stream = sys.stderr
        self._rewritten = is_terminal(self._stream)
        self._next = self._start + (0.0 if self._rewritten else FIRST_LINE)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, done: float, *, note: str | None = None) -> None:
        """Show `done` units in all, with a `note` that stays until the next one."""
        now = time.monotonic()
        if done > self._done:
            self._updates += 1
            self._paced = (now, done) if self._updates == 1 else self._paced
        self._done, self.note = done, self.note if note is None else note
        if self.silent or (now < self._next and not (self._rewritten and done == self.total)):
            return
        elapsed = now - self._start
        if self._rewritten:
            self._next = now + REDRAW
            columns = shutil.get_terminal_size().columns
            show(f"{ERASE}{self._text(elapsed)[: columns - 1]}", self._stream)
        else:
            self._next = now + max(3 * FIRST_LINE, SHARE * elapsed)
            show(f"{self._text(elapsed)}\n", self._stream)

    def add(self, units: float = 1, *, note: str | None = None) -> None:
        """Show `units` more."""
        self.update(self._done + units, note=note)

    def skip(self, units: float = 1) -> None:
        """Count `units` that took no time, such as those of an interrupted call."""
        self._first += units
        self._done += units
        self._paced = (self._paced[0], self._paced[1] + units)

    def close(self) -> None:
        """Erase the line on a terminal."""
        if self._rewritten and not self.silent:
            show(ERASE, self._stream)

    def _text(self, elapsed: float) -> str:
        parts, done = [self.what], f"{self._done:.1f}".removesuffix(".0")
        if self.total:
            filled = min(int(WIDTH * self._done / self.total), WIDTH)
            parts += [f"[{'#' * filled}{'.' * (WIDTH - filled)}]"] if self._rewritten else []
            parts.append(f"{done}/{self.total} {self.unit}")
            if self._done > self._first:
                left = self._left(elapsed)
                parts.append(format_duration(elapsed) + ("" if left is None else f", {format_duration(left)} left"))
        else:
            parts += [f"{done} {self.unit}", format_duration(elapsed)]
        return "  ".join([*parts, self.note] if self.note else parts)

    def _left(self, elapsed: float) -> float | None:
        """Return an estimate of the seconds that are left; None too early."""
        updates, seconds, share = SETTLED
        start, units = self._paced
        passed, done = self._start + elapsed - start, self._done - units
        if self._updates < updates or done <= 0 or (passed < seconds and done < share * (self.total or 0)):
            return None
        return passed / done * max((self.total or 0) - self._done, 0)


@contextmanager
def plain_messages() -> Iterator[None]:
    """Show warnings as sentences without file and line; hide deprecations, and what Lightning says unasked.

    For commands; afterwards, warnings and loggers are as they were. Filters given to Python (-W, PYTHONWARNINGS) stay.
    """
    import lightning  # late: the front of the command line is light
    from lightning.fabric.utilities.warnings import PossibleUserWarning

    erase, package = ERASE if is_terminal(sys.stderr) else "", Path(lightning.__file__).parent

    def sentence(message: Warning | str, *_: object) -> str:
        return f"{erase}warning: {' '.join(str(message).split())}\n"

    def was_asked_for(record: logging.LogRecord) -> bool:  # a callback of Lightning's was chosen by somebody
        place = Path(record.pathname)
        return record.levelno >= logging.WARNING or not place.is_relative_to(package) or "callbacks" in place.parts

    names = ("lightning.pytorch", "lightning.fabric")
    handlers = [handler for name in names for handler in logging.getLogger(name).handlers]
    formatters, before = [handler.formatter for handler in handlers], warnings.formatwarning
    with warnings.catch_warnings():
        if not sys.warnoptions:
            for category in (DeprecationWarning, FutureWarning, PossibleUserWarning):
                warnings.simplefilter("ignore", category)
            for harmless in HARMLESS:
                warnings.filterwarnings("ignore", harmless)
        warnings.formatwarning = sentence  # type: ignore[assignment]
        for handler in handlers:
            handler.addFilter(was_asked_for)
            handler.setFormatter(logging.Formatter(f"{erase}%(message)s"))
        try:
            yield
        finally:
            warnings.formatwarning = before
            for handler, formatter in zip(handlers, formatters, strict=True):
                handler.removeFilter(was_asked_for)
                handler.setFormatter(formatter)
