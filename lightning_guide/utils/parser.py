"""Parsers of the command line: short class names, class paths of older versions, errors on one line."""

from __future__ import annotations

import importlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser

from lightning_guide import PUBLIC, RENAMED
from lightning_guide.utils.config_base import BASE, read_with_base
from lightning_guide.utils.errors import one_line
from lightning_guide.utils.recipe import current_arguments, current_path
from lightning_guide.utils.run_places import run_of_config
from lightning_guide.utils.yaml_keys import quote_keys

__all__ = [
    "ConfigError",
    "LightningParser",
    "Parser",
    "one_sentence",
    "update_paths",
    "with_long_names",
    "with_merged_files",
]

_OWN_CLASS = re.compile(
    r"(lightning_guide|callbacks|datamodules)(\.\w+)*\.[A-Z]\w*|lightning_guide(\.\w+)+\.pretrained"
)


# Functions that configs name as if they were classes; the parser finds classes alone by their short names. Without
# class_path they are the values of these keys, whose values are denoisers.
_FUNCTIONS = {"Pretrained": "lightning_guide.pretrained.Pretrained"}
_DENOISERS = ("denoiser", "guidance", "guider", "positive", "unconditional", "auxiliary", "base", "exact")


def one_sentence(message: str) -> str:
    """Condense an error of a config or the command line to one line, with similar class names for an unknown class."""
    return one_line(message, {name for package in map(importlib.import_module, PUBLIC) for name in package.__all__})


def update_paths(value: Any) -> Any:
    """Replace class paths and argument names of older versions in parsed YAML by those of this one, and ``~/``.

    Raises:
        ValueError: if an argument is given by its old and its new name.
    """
    if isinstance(value, list):
        return [update_paths(item) for item in value]
    if isinstance(value, str):
        if value.startswith("~/"):
            return os.path.expanduser(value)
        return current_path(value) if _OWN_CLASS.fullmatch(value) else value
    if not isinstance(value, dict):
        return value
    updated = {key: _long_name(str(key), update_paths(item)) for key, item in value.items()}
    path = updated.get("class_path")
    if isinstance(path, str):
        updated["class_path"] = path = RENAMED.get(path, path)
        if isinstance(arguments := updated.get("init_args"), dict):
            updated["init_args"] = current_arguments(path, arguments)
    return updated


def _long_name(key: str, value: Any) -> Any:
    """Return the path of a function that is the value of the (dotted) `key`, of a denoiser or class_path."""
    short = isinstance(value, str) and key.rpartition(".")[2] in (*_DENOISERS, "class_path")
    return _FUNCTIONS.get(value, value) if short else value


def with_long_names(words: Sequence[str]) -> list[str]:
    """Replace short names of functions after options such as --model.denoiser by their paths."""
    found = []
    for before, word in itertools.pairwise(["", *words]):
        option, equals, value = word.partition("=")
        if word.startswith("--"):
            found.append(f"{option}={_long_name(option, value)}" if equals else word)
        else:
            found.append(_long_name(before, word) if before.startswith("--") else word)
    return found


def _load(text: str) -> Any:
    return update_paths(get_loader("yaml")(quote_keys(text)))


set_loader("lightning_guide", _load, exceptions=(yaml.YAMLError,))


class _Quoting(yaml.SafeDumper):
    """Write text in quotes, so that a loader does not read it as a number or a date."""


_Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def _merged(path: str | os.PathLike[str], content: str) -> str:
    """Return `content` of the YAML file `path` merged over the files of its `base`; as it is without `base`."""
    try:
        merged = read_with_base(os.fspath(path), lambda file: _load(file.read_text(encoding="utf-8")))
    except yaml.YAMLError:  # left to the parser
        return content
    return yaml.dump(merged, Dumper=_Quoting, sort_keys=False, width=1 << 16)


def with_merged_files(words: Sequence[str]) -> list[str]:
    """Replace files after options such as --trainer by their content, if they have a `base`."""
    found = []
    for before, word in itertools.pairwise(["", *words]):
        option, equals, file = word.partition("=") if word.startswith("--") else (before, "", word)
        if (
            option.startswith("--")
            and option != "--config"
            and file.endswith((".yaml", ".yml"))
            and os.path.isfile(file)
        ):
            content = Path(file).read_text(encoding="utf-8")
            if BASE in content:
                word = f"{option}={_merged(file, content)}" if equals else _merged(file, content)
        found.append(word)
    return found


class ConfigError(ValueError):
    """What the parser refuses: an unknown key, a value of another type."""


# What has been parsed for classes in the `_each_once` that is open.
_PARSED: ContextVar[dict[Any, Namespace] | None] = ContextVar("parsed", default=None)


@contextmanager
def _each_once() -> Iterator[None]:
    """Parse equal arguments of a class once until the outermost of these contexts ends."""
    token = _PARSED.set({} if (parsed := _PARSED.get()) is None else parsed)
    try:
        yield
    finally:
        _PARSED.reset(token)


class Parser(ArgumentParser):
    """Argument parser that raises ConfigError with a sentence, without usage and without the valid values.

    jsonargparse parses the arguments of a class about twice as often as those of the class around it, by a parser of
    its own each time. Here equal arguments of a class are parsed once in a call.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Read values and configs as YAML; classes exported by `PUBLIC` need no module in a class path."""
        for package in PUBLIC:
            importlib.import_module(package)
        self._classes: tuple[Any, ...] = ()
        super().__init__(*args, **({"parser_mode": "lightning_guide"} | kwargs))

    def add_class_arguments(self, class_type: type, *args: Any, **kwargs: Any) -> list[str]:
        """Add the arguments of a class."""
        self._classes += (class_type, repr((args, kwargs)))
        return super().add_class_arguments(class_type, *args, **kwargs)

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the words of the command line."""
        with _each_once():
            return super().parse_args(*args, **kwargs)

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Return settings as YAML; they are parsed again."""
        with _each_once():
            return super().dump(*args, **kwargs)

    def parse_object(self, *args: Any, **kwargs: Any) -> Namespace:
        """Parse the arguments of a class, equal ones once."""
        parsed = _PARSED.get()
        if parsed is None or not self._classes:
            return super().parse_object(*args, **kwargs)
        key = (type(self), self._classes, repr((args, kwargs)))
        if key not in parsed:
            parsed[key] = super().parse_object(*args, **kwargs)
        return parsed[key].clone()

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """Parse a config file; the paths in the config of a run are where the run is now."""
        if run_of_config(path) is None:
            return super().parse_path(path, *args, **kwargs)
        settings = read_with_base(os.fspath(path), lambda file: _load(file.read_text(encoding="utf-8")))
        return self.parse_string(yaml.dump(settings, Dumper=_Quoting, sort_keys=False, width=1 << 16), **kwargs)

    def parse_string(self, content: str, path: str | os.PathLike[str] = "", *args: Any, **kwargs: Any) -> Namespace:
        """Parse a config, of a file together with those of its `base`.

        Raises:
            ValueError: if the file inherits from a file that does not exist.
        """
        if path and BASE in content and os.path.isfile(path):  # the working directory is the folder of the file here
            content = _merged(path, content)
        return super().parse_string(content, path, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise ConfigError with a sentence."""
        raise ConfigError(one_sentence(message)) from ex


class LightningParser(Parser, LightningArgumentParser):
    """`Parser` for LightningCLI."""
