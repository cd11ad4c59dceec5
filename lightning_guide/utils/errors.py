"""Condense config errors and runtime errors to one line."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

__all__ = ["as_value_error", "did_you_mean", "explain_os_error", "explain_runtime_error", "nearest", "one_line"]


# Beginnings of lines that give only context. The lines after them, up to the next statement, are context as well.
_CONTEXT = (
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Expected a <class 'NoneType'>",
    "Expected a path but",
    "Subclass types expect",
    "a class path (str)",
    "a dict with",
)


_VAGUE = "Not a valid subclass of"  # kept only if the message has no other statement


_STATEMENT = re.compile(r"- |Parser key|Problem with")


_KEY = re.compile(r'Parser key "(.+)":')


_CLASS = re.compile(r"Problem with given class_path '(?:[\w.]*\.)?(\w+)':")


_TYPE = re.compile(r"(?:a )?<class '([\w.]+)'>")


_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\w+)$|module '[\w.]+' has no attribute '(\w+)'")


_COMMUNICATION = re.compile(r"gloo|nccl|ProcessGroup|Connection (closed|reset)", re.IGNORECASE)


_COMPILER = re.compile(r"(no working C\+\+ compiler|working triton).*", re.IGNORECASE)


def nearest(name: str, known: Collection[str]) -> str:
    """Return the one of `known` that is most similar to `name`; empty if none is similar."""
    return next(iter(get_close_matches(name, sorted(known), 1)), "")


def did_you_mean(place: str | Path) -> str:
    """Return " (did you mean PLACE?)" with the existing place most similar to one that does not exist; may be empty.

    The names of wrong folders are mended, too; ``*`` and other patterns stay.
    """
    near = _nearest_place(Path(place).expanduser())
    return f" (did you mean {near}?)" if near else ""


def _nearest_place(path: Path) -> Path | None:
    """Return `path` with its first wrong part mended, and those below it as far as they can be."""
    for place in [*reversed(path.parents), path]:
        if re.search(r"[*?\[{]", place.name):
            break
        if not place.exists():
            try:
                there = sorted(place.parent.iterdir(), key=lambda each: each.suffix == place.suffix)
            except OSError:  # a file, or a folder that cannot be read
                return None
            stems = {each.stem: each.name for each in there}  # of two, that with the same suffix
            near = stems.get(nearest(place.stem, stems), "")
            mended = place.parent / near / path.relative_to(place)
            return (_nearest_place(mended) or (mended if _may_exist(mended) else place.parent / near)) if near else None
    return None


def _may_exist(path: Path) -> bool:
    """Return whether `path` exists or is a pattern."""
    return path.exists() or bool(re.search(r"[*?\[{]", str(path)))


def explain_os_error(error: OSError) -> str:
    """Return the path and the reason of an error of the file system, without its number."""
    if error.filename is None or error.strerror is None:
        return str(error)
    if isinstance(error, FileExistsError) and os.path.isfile(error.filename):
        return f"{os.fspath(error.filename)} is a file; expected a folder"
    hint = did_you_mean(os.fsdecode(error.filename)) if isinstance(error, FileNotFoundError) else ""
    return f"{os.fspath(error.filename)}: {error.strerror[0].lower()}{error.strerror[1:]}{hint}"


def explain_runtime_error(message: str) -> str | None:
    """Explain an error of the environment: a lost process or a missing compiler. Return None for other messages."""
    if missing := _COMPILER.search(message):
        return (
            f"compile: true needs a compiler ({missing[0].strip()}); install one (for a CPU a C++ compiler, as g++ or "
            "named in CXX), or set compile to false"
        )
    if not _COMMUNICATION.search(message):
        return None
    return (
        f"another process of this run crashed or is unresponsive ({message.strip().splitlines()[0][:200]}); check its "
        "log, then start the same command again: the run resumes from its newest checkpoint"
    )


@contextmanager
def as_value_error() -> Iterator[None]:
    """Re-raise exceptions other than ValueError as a ValueError of one line, prefixed by their type.

    Raises:
        ValueError: in place of any other exception.
    """
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise ValueError(explain_runtime_error(str(error)) or f"{type(error).__name__}: {text}") from error


def one_line(message: str, classes: Collection[str] = ()) -> str:
    """Condense `message` to one line: the keys that lead to the error, then the error.

    An unknown class is followed by those of `classes` with a similar name. A message without any statement is only
    joined to one line.
    """
    statements = _statements(message, (*_CONTEXT, _VAGUE), classes) or _statements(message, _CONTEXT, classes)
    return ("; ".join(statements) or " ".join(message.split())).replace(":; ", ": ")


def _statements(message: str, context: tuple[str, ...], classes: Collection[str]) -> list[str]:
    """Return each statement once, after the keys that lead to it, without lines that begin like `context`."""
    statements: list[str] = []
    keys: list[str] = []
    kind = ""
    in_context = False
    for line in message.splitlines():
        text = line.strip()
        if not text or (in_context and not _STATEMENT.match(text)):
            continue
        text = text.removeprefix("- ")
        in_context = text.startswith(context)
        if key := _KEY.fullmatch(text):
            keys, kind = [*keys, key[1]], ""
        elif of := _CLASS.fullmatch(text):
            kind = of[1]
        elif not in_context:
            where = f"{'.'.join(keys)} ({kind})" if keys and kind else kind or ".".join(keys)
            text = _TYPE.sub(r"\1", text) + _suggestion(text, classes)
            statements.append(f"{where}: {text}" if where else text)
            keys, kind = [], ""
    return list(dict.fromkeys(statements))


def _suggestion(text: str, classes: Collection[str]) -> str:
    """Return a hint at the `classes` whose names are similar to the unknown class in `text`; may be empty."""
    unknown = _UNKNOWN_CLASS.search(text)
    near = get_close_matches(unknown[1] or unknown[2], sorted(classes)) if unknown else []
    return f" (no such class; did you mean {' or '.join(near)}?)" if near else ""
