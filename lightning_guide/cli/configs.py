"""Config files on the command line of LightningCLI's commands, checked as far as no class is needed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from lightning_guide.cli.options import config_keys, trainer_arguments
from lightning_guide.utils.config_base import BASE, config_files
from lightning_guide.utils.errors import nearest
from lightning_guide.utils.files import read_node

__all__ = ["check_configs", "named_configs"]


def named_configs(words: Sequence[str]) -> Iterator[str]:
    """Yield the files after -c and --config."""
    flags = ("-c", "--config")
    for word, following in itertools.zip_longest(words, words[1:]):
        flag, equals, value = word.partition("=")
        if word in flags and following is not None:
            yield following
        elif flag in flags and equals:
            yield value
        elif word.startswith("-c") and not equals and word not in flags:
            yield word.removeprefix("-c")


def check_configs(name: str, words: Sequence[str]) -> None:
    """Refuse configs of the command `name` that cannot be read or have unknown keys at the top or under trainer.

    Files in other places, as after --model, are read if their names end in .yaml or .yml.

    Raises:
        ValueError: naming the file, the key and the nearest right one.
    """
    for file in named_configs(words):
        for i, each in enumerate(config_files(file)):
            _check_keys(each, read_node(each), name, top=i == 0)
    for before, word in itertools.pairwise(["", *words]):
        option, _, value = word.partition("=") if word.startswith("--") else (before, "", word)
        whole = option in ("--trainer", "--model", "--data")
        if value.endswith((".yaml", ".yml")) and (whole or Path(value).is_file()):
            for each in config_files(value):
                read_node(each)


def _check_keys(file: Path, root: yaml.Node | None, name: str, *, top: bool) -> None:
    if isinstance(root, yaml.MappingNode):
        _check(file, "", root, [*config_keys(name), BASE], name)
        for key, value in root.value:
            if key.value == "trainer" and isinstance(value, yaml.MappingNode):
                _check(file, "trainer.", value, trainer_arguments(), "the trainer")
    elif top:
        raise ValueError(f"{file} holds no keys; expected keys and values, such as trainer, model and data")


def _check(file: Path, prefix: str, node: yaml.MappingNode, known: list[str], owner: str) -> None:
    for key, _ in node.value:
        if key.value not in (*known, "<<"):
            near = nearest(str(key.value), known)
            hint = f"did you mean {prefix}{near}?" if near else f"{owner} has {', '.join(known)}"
            raise ValueError(f"{file}, line {key.start_mark.line + 1}: unknown key {prefix}{key.value}; {hint}")
