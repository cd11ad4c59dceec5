"""Weights of published checkpoints, renamed, as those of a network that is built from their shapes."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_guide.utils.errors import did_you_mean

__all__ = ["assign_weights", "read_state_dict", "rename", "with_defaults", "without_weights"]

# entries of training checkpoints that hold the weights, the averaged ones first
_ENTRIES = ("ema", "state_dict", "model")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name: safetensors, or torch without any pickled code.

    Of a training checkpoint these are the averaged weights (`ema`), if it has some.

    Raises:
        ValueError: if there is no such file, it is damaged, or it holds anything else.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}{did_you_mean(path)}; expected a checkpoint")
    try:
        if zipfile.is_zipfile(path):  # torch does not compare checksums
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"the checksum of {damaged} in it is wrong")
        safe = str(path).endswith(".safetensors")
        content = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # raised by the readers of damaged and hostile files
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} cannot be read ({reason}); expected a checkpoint of tensors") from None
    if isinstance(content, dict):
        content = next((content[key] for key in _ENTRIES if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected the tensors of a network by name")
    other = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if other or not content:
        raise ValueError(f"{path} holds {other[0] if other else 'nothing'}; expected the tensors of a network by name")
    return {str(key): value for key, value in content.items()}


def with_defaults(given: Mapping[str, Any] | None, *, file: str | Path, **defaults: Any) -> dict[str, Any]:
    """Return the `defaults` of numbers that weights do not tell, replaced by those `given`.

    Raises:
        ValueError: naming one that there is not.
    """
    for name in given or {}:
        if name not in defaults:
            raise ValueError(f"{file}: there is no constant {name}; expected some of {', '.join(defaults)}")
    return defaults | dict(given or {})


# A rule turns the values of a match of its pattern, and a tensor, into tensors by their new names
Rule = Callable[[re.Match[str], Tensor], Mapping[str, Tensor]]


def rename(
    tensors: Mapping[str, Tensor], rules: Mapping[str, str | Rule], *, file: str | Path, kind: str
) -> dict[str, Tensor]:
    """Return `tensors` under the names that `rules` give: pattern of the whole name -> replacement, or a function.

    `kind` names the network in errors.

    Raises:
        ValueError: naming the first tensor that matches no rule, or whose shape does not suit its function.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, rule in rules.items():
            if match := re.fullmatch(pattern, name):
                try:
                    renamed |= {match.expand(rule): tensor} if isinstance(rule, str) else rule(match, tensor)
                except RuntimeError as error:  # raised by a reshape
                    raise ValueError(f"{file}: {name} has the shape {tuple(tensor.shape)}: {error}") from None
                break
        else:
            raise ValueError(f"{file}: it has a tensor {name}, which {kind} does not have")
    return renamed


def without_weights() -> AbstractContextManager[Any]:
    """Return a context in which parameters of new modules are on the meta device, and buffers are computed."""
    from accelerate import init_empty_weights  # takes seconds

    context: AbstractContextManager[Any] = init_empty_weights(include_buffers=False)
    return context


def assign_weights(module: nn.Module, tensors: Mapping[str, Tensor], *, file: str | Path) -> None:
    """Make `tensors` the weights of `module`, in their own precision, without a copy.

    Raises:
        ValueError: naming the first tensor that is missing, or that is no weight or one of another shape.
    """
    expected = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
    for name in _by_place(expected.keys() | tensors.keys()):
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != expected.get(name):
            here, there = found or "missing", expected.get(name, "no such weight")
            raise ValueError(f"{file}: {name} is {here}; expected {there} by the other weights")
    module.load_state_dict(dict(tensors), assign=True)


def _by_place(names: Iterable[str]) -> Sequence[str]:
    """Sort names with numbers in them by the numbers."""
    parts = {name: [int(each) if each.isdigit() else math.inf for each in name.split(".")] for name in names}
    return sorted(parts, key=lambda name: (re.sub(r"\d+", "", name), parts[name]))
