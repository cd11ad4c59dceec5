"""Parsers of the command line: short class names, class paths of older versions, errors on one line."""

from __future__ import annotations

import importlib
import os
import re
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser

from lightning_guide import PUBLIC, RENAMED, RENAMED_ARGUMENTS
from lightning_guide.utils.config_base import BASE, read_with_base
from lightning_guide.utils.errors import one_line
from lightning_guide.utils.recipe import current_path

__all__ = ["LightningParser", "Parser", "PythonLightningParser", "PythonParser", "one_sentence", "update_paths"]

_OWN_CLASS = re.compile(
    r"(lightning_guide|callbacks|datamodules)(\.\w+)*\.[A-Z]\w*|lightning_guide(\.\w+)+\.pretrained"
)


def one_sentence(message: str) -> str:
    """Condense an error of a config or the command line to one line, with similar class names for an unknown class."""
    return one_line(message, {name for package in map(importlib.import_module, PUBLIC) for name in package.__all__})


def update_paths(value: Any) -> Any:
    """Replace class paths and argument names of older versions in parsed YAML by those of this one.

    Raises:
        ValueError: if an argument is given by its old and its new name.
    """
    if isinstance(value, list):
        return [update_paths(item) for item in value]
    if isinstance(value, str):
        return current_path(value) if _OWN_CLASS.fullmatch(value) else value
    if not isinstance(value, dict):
        return value
    updated = {key: update_paths(item) for key, item in value.items()}
    path = updated.get("class_path")
    if isinstance(path, str):
        updated["class_path"] = path = RENAMED.get(path, path)
        own, arguments = "." not in path or _OWN_CLASS.fullmatch(path), updated.get("init_args")
        renamed = RENAMED_ARGUMENTS.get(path.rpartition(".")[2], {}) if own else {}
        if renamed and isinstance(arguments, dict):
            for old, new in renamed.items():
                if old in arguments and new in arguments:
                    raise ValueError(
                        f"{path} has {old} and {new}, the old and the new name of one argument; expected {new}"
                    )
            updated["init_args"] = {renamed.get(key, key): item for key, item in arguments.items()}
    return updated


def _load(text: str) -> Any:
    return update_paths(get_loader("yaml")(text))


def _has_base(text: str) -> bool:
    try:
        content = _load(text)
    except yaml.YAMLError:  # left to the parser
        return False
    return isinstance(content, dict) and BASE in content


set_loader("lightning_guide", _load, exceptions=(yaml.YAMLError,))


class _Quoting(yaml.SafeDumper):
    """Write text in quotes, so that a loader does not read it as a number or a date."""


_Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


class Parser(ArgumentParser):
    """Argument parser that exits with an error of one line, without usage and without the valid values."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Read values and configs as YAML; classes exported by `PUBLIC` need no module in a class path."""
        for package in PUBLIC:
            importlib.import_module(package)
        super().__init__(*args, **({"parser_mode": "lightning_guide"} | kwargs))

    def parse_string(self, content: str, path: str | os.PathLike[str] = "", *args: Any, **kwargs: Any) -> Namespace:
        """Parse a config, of a file together with those of its `base`.

        Raises:
            ValueError: if the file inherits from a file that does not exist.
        """
        if path and os.path.isfile(path) and _has_base(content):  # the working directory is the folder of the file here
            merged = read_with_base(os.fspath(path), lambda file: _load(file.read_text(encoding="utf-8")))
            content = yaml.dump(merged, Dumper=_Quoting, sort_keys=False, width=1 << 16)
        return super().parse_string(content, path, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with status 2 and an error of one line."""
        if os.environ.get("LIGHTNING_GUIDE_TRACEBACK") and ex:
            raise ex
        help_of = self.prog.replace(" [options]", "")
        self.exit(2, f"lightning-guide: error: {one_sentence(message)} ({help_of} --help)\n")


class LightningParser(Parser, LightningArgumentParser):
    """`Parser` for the commands of LightningCLI."""


class PythonParser(Parser):
    """Argument parser that raises ValueError where the command line would exit."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise ValueError with an error of one line."""
        raise ValueError(one_sentence(message)) from None


class PythonLightningParser(PythonParser, LightningParser):
    """`PythonParser` for LightningCLI used from Python."""
