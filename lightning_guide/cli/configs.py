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

__all__ = ["config_mistakes", "named_configs"]

_OF_THE_MODEL = {each: f"model.init_args.{each}" for each in ("denoiser", "evaluations", "guidances", "metrics")}


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


def config_mistakes(name: str, words: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each unknown key at the top or under trainer in the configs of the command `name`.

    Files in other places, as after --model, are read if their names end in .yaml or .yml.

    Raises:
        ValueError: naming a file that cannot be read.
    """
    for file in named_configs(words):
        for i, each in enumerate(config_files(file)):
            yield from _of_file(each, read_node(each), name, top=i == 0)
    for before, word in itertools.pairwise(["", *words]):
        option, _, value = word.partition("=") if word.startswith("--") else (before, "", word)
        whole = option in ("--trainer", "--model", "--data")
        if value.endswith((".yaml", ".yml")) and (whole or Path(value).is_file()):
            for each in config_files(value):
                read_node(each)


def _of_file(file: Path, root: yaml.Node | None, name: str, *, top: bool) -> Iterator[str]:
    if isinstance(root, yaml.MappingNode):
        yield from _of_node(file, "", root, [*config_keys(name), BASE], name)
        for key, value in root.value:
            if key.value == "trainer" and isinstance(value, yaml.MappingNode):
                yield from _of_node(file, "trainer.", value, trainer_arguments(), "the trainer")
    elif top:
        raise ValueError(f"{file} holds no keys; expected keys and values, such as trainer, model and data")


def _of_node(file: Path, prefix: str, node: yaml.MappingNode, known: list[str], owner: str) -> Iterator[str]:
    unknown = [key for key, _ in node.value if key.value not in (*known, "<<")]
    below = {} if prefix else {each: f"trainer.{each}" for each in trainer_arguments()} | _OF_THE_MODEL
    near = [below.get(key.value) or nearest(str(key.value), known) for key in unknown]
    for key, meant in zip(unknown, near, strict=True):
        if meant:
            yield f"{_place(file, key)}: unknown key {prefix}{key.value}; did you mean {prefix}{meant}?"
    if rest := [key for key, meant in zip(unknown, near, strict=True) if not meant]:
        names = ", ".join(f"{prefix}{key.value}" for key in rest)
        keys = "keys" if len(rest) > 1 else "key"
        yield f"{_place(file, rest[0])}: unknown {keys} {names}; {owner} has {', '.join(known)}"


def _place(file: Path, node: yaml.Node) -> str:
    return f"{file}, line {node.start_mark.line + 1}"
