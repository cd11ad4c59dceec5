"""The first answer to a command line: help, version and typing errors, without importing torch or Lightning."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from lightning_guide.cli.classes import argument_mistakes
from lightning_guide.cli.configs import config_mistakes, named_configs
from lightning_guide.cli.help import command_help, overview, version
from lightning_guide.cli.options import OF_PARSER, known_options, trainer_arguments
from lightning_guide.cli.table import COMMANDS, read_signature
from lightning_guide.utils.config_base import config_files
from lightning_guide.utils.errors import did_you_mean, nearest
from lightning_guide.utils.files import read_node
from lightning_guide.utils.places import SHOWN, list_mistakes
from lightning_guide.utils.shipped import find_config, with_shipped_configs

__all__ = ["answer"]

# Arguments of functions: places that exist,
_EXISTING = ("run", "search", "base", "auxiliary", "samples", "against", "methods", "configs")
_WRITES_A_RUN = ("import", "pull")  # but not of these


def answer(words: list[str]) -> list[str]:
    """Print help or the version and return nothing, or check `words` and return those to be run.

    A ``~`` at the beginning of a path becomes the home folder, and the folder of a run becomes ``-c RUN/config.yaml``.

    Raises:
        SystemExit: with status 2 and a sentence on stderr, for an unknown command or option.
        ValueError: for a config that cannot be read or has an unknown key at its top.
    """
    name, *rest = words or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
        return []
    if name == "--version":
        print(version())
        return []
    if name in ("-c", "--config") or name.startswith("--config="):  # one config of several commands, as Lightning's
        return words
    if name not in COMMANDS:
        near = "".join(f"; did you mean {each}?" for each in get_close_matches(name, COMMANDS, 1))
        what = "an option" if name.startswith("-") else "a command"
        expected = f"expected a command first: {', '.join(COMMANDS)}"
        _refuse("", f"{name!r} is not {what} of lightning-guide{near or f'; {expected}'}", "")
    if "--help" in rest or "-h" in rest:
        place = rest.index("--help" if "--help" in rest else "-h")
        if rest[place + 1 : place + 2] == ["all"]:
            return [name, "--help"]
        print(command_help(name))
        return []
    rest = with_shipped_configs([_home(word) for word in rest])
    mistakes = list(_option_mistakes(name, rest))
    if COMMANDS[name].function:
        _refuse_all(mistakes, name)
        return [name, *_check_positionals(name, _lists(name, rest))]
    rest = _open_run(name, rest)
    for before, word in itertools.pairwise(rest):
        if not word.startswith("-") and not before.startswith("-"):
            hint = "expected -c before each config" if word.endswith((".yaml", ".yml")) else "expected --KEY VALUE"
            _refuse("", f"{word!r} belongs to no option; {hint}", name)
    mistakes += config_mistakes(name, rest)
    _refuse_all([*mistakes, *argument_mistakes(rest, list(named_configs(rest)))], name)
    return [name, *rest]


def _refuse(before: str, message: str, command: str) -> NoReturn:
    """End with status 2 and one sentence."""
    where = " ".join(("lightning-guide", *command.split(), "--help"))
    print(f"{before}lightning-guide: error: {message} ({where})", file=sys.stderr)
    raise SystemExit(2)


def _refuse_all(mistakes: list[str], command: str) -> None:
    """Refuse what `mistakes` say, all at once; nothing if there are none."""
    if mistakes:
        _refuse("", list_mistakes(mistakes), command)


def _home(word: str) -> str:
    """Replace ``~`` at the beginning of a path, alone or as the value of an option."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return option + equals + (os.path.expanduser(value) if value.startswith("~") else value)


def _option_mistakes(name: str, words: list[str]) -> Iterator[str]:
    """Yield a sentence for each option that the command does not have."""
    known = known_options(name)
    for word in words:
        option = word.partition("=")[0].removesuffix("+")
        if not _is_option(option):
            continue
        first, _, below = option.removeprefix("--").partition(".")
        if option.startswith("-c") and not option.startswith("--") and "c" in known:
            continue  # -cFILE
        if not option.startswith("--") or first not in known:
            shown = ", ".join(f"--{each}" for each in sorted(known - OF_PARSER))
            near = nearest(option.lstrip("-").partition(".")[0], known - {"c"})
            wanted = option.lstrip("-") if first == near else f"{near}.{below}".rstrip(".")
            hint = f"did you mean --{wanted}?" if near else f"there are {shown}"
            yield f"{option} is not an option of {name}; {hint}"
        key = below.partition(".")[0]
        if first == "trainer" and not COMMANDS[name].function and key and key not in {*trainer_arguments(), "help"}:
            near = nearest(key, trainer_arguments())
            hint = f"did you mean --trainer.{near}?" if near else "expected an argument of lightning.pytorch.Trainer"
            yield f"--trainer.{key} is not a setting of the trainer; {hint}"


def _check_positionals(name: str, words: list[str]) -> list[str]:
    """Refuse a command of a function without its arguments, or with too many; the last may be a list of words."""
    for file in named_configs(words):
        for path in config_files(file):
            read_node(path)
    if any(word.partition("=")[0] in ("--config", "--print_config") for word in words):
        return words
    signature = read_signature(COMMANDS[name].function)
    expected = signature.positionals
    for word, after in itertools.pairwise([*words, "--end"]):
        argument = signature.arguments.get(word.removeprefix("--"))
        if argument is not None and argument.type == "bool" and _is_option(word) and _is_option(after):
            _refuse("", f"{word} needs a value; expected {word} true or {word} false", name)
    placed = [i for i in range(len(words)) if not _is_option(words[i]) and not (i and _wants_value(words[i - 1]))]
    if len(placed) < len(expected):
        missing = expected[len(placed)]
        _refuse("", f"{name} needs {missing.name.upper()}: {missing.help.rstrip('.')}", name)
    for each in signature.arguments.values():
        if (
            not each.positional
            and each.default is None
            and not any(w.partition("=")[0] == f"--{each.name}" for w in words)
        ):
            _refuse("", f"{name} needs --{each.name}: {each.help.rstrip('.')}", name)
    last = expected[-1].type
    listed = [words[i] for i in placed[len(expected) - 1 :]]
    if len(listed) > 1 and not last.startswith("list["):
        shown = " ".join(each.name.upper() for each in expected)
        _refuse("", f"{name} takes {shown}, but {len(placed)} words are given", name)
    if name not in _WRITES_A_RUN:
        given = list(zip(expected, (words[i] for i in placed), strict=False))
        given += [(expected[-1], words[i]) for i in placed[len(expected) :]]
        given += [(signature.arguments[name], value) for name, value in _values(words) if name in signature.arguments]
        absent: list[str] = []
        for argument, word in given:
            published = "KIND:PLACE" in argument.help and ":" in word  # checked by the command
            for place in re.findall(r'"([^"]+)"', word) if word.startswith('["') else [word]:
                if argument.name in _EXISTING and not published and not re.search(r"[*?{\[]", place):
                    absent.append(_absent(find_config(place), argument.help.rstrip(".")))
        if any(absent):
            raise ValueError("; ".join(filter(None, absent)))
    if not last.startswith("list[") or listed[0].startswith("["):
        return words
    kept = [word for i, word in enumerate(words) if i not in placed]
    return [*(words[i] for i in placed[: len(expected) - 1]), _listed(last, listed), *kept]


def _values(words: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the names of options and their values."""
    for word, after in itertools.pairwise([*words, ""]):
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--"):
            yield name, value if equals else after


def _absent(place: Path, what: str) -> str:
    """Return a sentence about a path that does not exist, with the nearest one that does; empty if it exists."""
    return "" if place.exists() else f"{place} does not exist{did_you_mean(place)}; expected {what}"


def _listed(kind: str, words: list[str]) -> str:
    """Write words as a list of the annotated type `kind`."""
    return f"[{', '.join(json.dumps(each) if kind.startswith('list[str]') else each for each in words)}]"


def _lists(name: str, words: list[str]) -> list[str]:
    """Put the value of an option that takes a list in brackets."""
    kinds = {f"--{each.name}": each.type for each in read_signature(COMMANDS[name].function).arguments.values()}
    found = []
    for before, word in itertools.pairwise(["", *words]):
        option, equals, value = word.partition("=") if _is_option(word) else (before, "", word)
        if kinds.get(option, "").startswith("list[") and (equals or not _is_option(word)) and value[:1] != "[":
            word = (f"{option}=" if equals else "") + _listed(kinds[option], [value])
        found.append(word)
    return found


def _is_option(word: str) -> bool:
    return word.startswith("-") and word.lstrip("-")[:1].isalpha()


def _wants_value(word: str) -> bool:
    return _is_option(word) and "=" not in word and not (word.startswith("-c") and len(word) > 2)


def _open_run(name: str, words: list[str]) -> list[str]:
    """Replace the folder of a run, or a config, in the first place by the options that open it."""
    if words and not words[0].startswith("-"):
        place, rest = find_config(words[0]), words[1:]
        if place.is_dir():
            config = place / "config.yaml"
            if not config.is_file():
                runs = ", ".join(str(each.parent) for each in sorted(place.glob("*/config.yaml"))[:SHOWN])
                expected = "the folder of a run that fit has made" + (f", such as {runs}" if runs else "")
                raise ValueError(f"{place} holds no config.yaml; expected {expected}")
            return ["-c", str(config), f"--trainer.default_root_dir={place}", *rest]
        if place.suffix not in (".yaml", ".yml"):
            if absent := _absent(place, "the folder of a run, or a config"):
                raise ValueError(absent)
        return ["-c", str(place), *rest]
    if not any(word.startswith(("-c", "--config", "--model", "--data", "--trainer", "--print")) for word in words):
        _refuse("", f"{name} needs a config or the folder of a run, as lightning-guide {name} -c CONFIG", name)
    return words
