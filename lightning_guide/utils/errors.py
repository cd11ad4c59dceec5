"""What went wrong, in one sentence: a mistake in a config without the values and types around it, or a circumstance."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

__all__ = ["explain_runtime_error", "as_value_error", "one_line"]


# Lines that say nothing about the mistake itself; what follows them up to the next statement belongs to them.
_AROUND = (
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


_VAGUE = "Not a valid subclass of"  # where nothing else is said


_STATEMENT = re.compile(r"- |Parser key|Problem with")


_KEY = re.compile(r'Parser key "(.+)":')


_CLASS = re.compile(r"Problem with given class_path '(?:[\w.]*\.)?(\w+)':")


_TYPE = re.compile(r"(?:a )?<class '([\w.]+)'>")


_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\w+)$|module '[\w.]+' has no attribute '(\w+)'")


_TALK = re.compile(r"gloo|nccl|ProcessGroup|Connection (closed|reset)", re.IGNORECASE)


_COMPILER = re.compile(r"(no working C\+\+ compiler|working triton).*", re.IGNORECASE)


def explain_runtime_error(message: str) -> str | None:
    """What around the program ended it, in words: a process lost, a compiler missing; None if `message` is neither."""
    if missing := _COMPILER.search(message):
        return (
            f"compile: true needs a compiler ({missing[0].strip()}); install one (for a CPU a C++ compiler, as g++ or "
            "named in CXX), or set compile to false"
        )
    if not _TALK.search(message):
        return None
    return (
        f"another process of this run died or hangs ({message.strip().splitlines()[0][:200]}); see what it said, then "
        "start the same command again: the run goes on from its newest checkpoint"
    )


@contextmanager
def as_value_error() -> Iterator[None]:
    """Whatever fails within ends as a ValueError of one line; what no ValueError said is told with its kind.

    Raises:
        ValueError: in place of any other exception.
    """
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise ValueError(explain_runtime_error(str(error)) or f"{type(error).__name__}: {said}") from error


def one_line(message: str, classes: Collection[str] = ()) -> str:
    """`message` on one line: the keys on the way to the mistake, then what is wrong there.

    A class that is unknown is followed by those of `classes` that are written nearly like it. A message that holds
    nothing but surroundings comes back as it was, on one line.
    """
    said = _statements(message, (*_AROUND, _VAGUE), classes) or _statements(message, _AROUND, classes)
    return ("; ".join(said) or " ".join(message.split())).replace(":; ", ": ")


def _statements(message: str, surroundings: tuple[str, ...], classes: Collection[str]) -> list[str]:
    """What is wrong, each statement once, behind the keys that lead to it; no lines that begin like `surroundings`."""
    said: list[str] = []
    keys: list[str] = []
    kind = ""
    around = False
    for line in message.splitlines():
        text = line.strip()
        if not text or (around and not _STATEMENT.match(text)):
            continue
        text = text.removeprefix("- ")
        around = text.startswith(surroundings)
        if key := _KEY.fullmatch(text):
            keys, kind = [*keys, key[1]], ""
        elif of := _CLASS.fullmatch(text):
            kind = of[1]
        elif not around:
            where = f"{'.'.join(keys)} ({kind})" if keys and kind else kind or ".".join(keys)
            text = _TYPE.sub(r"\1", text) + _suggestion(text, classes)
            said.append(f"{where}: {text}" if where else text)
            keys, kind = [], ""
    return list(dict.fromkeys(said))


def _suggestion(text: str, classes: Collection[str]) -> str:
    """Classes with a name like the unknown one that `text` is about, as an addition to it."""
    unknown = _UNKNOWN_CLASS.search(text)
    near = get_close_matches(unknown[1] or unknown[2], sorted(classes)) if unknown else []
    return f" (no such class; did you mean {' or '.join(near)}?)" if near else ""
