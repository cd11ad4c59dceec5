"""Settings as plain data, so that rounds on disk are continued only by a config that would have drawn the same ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightning_guide.utils.recipe import HasRecipe

__all__ = ["check_same_settings", "describe_settings"]


_LONGEST = 80  # characters of a list that are kept as they are


def describe_settings(name: str, value: Any) -> dict[str, Any]:
    """`value` as plain data by dotted names: ``{"target": "Gain", "target.delta": 0.2}``.

    Of an object that does not record its arguments, its public numbers and strings are taken.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return {name: value}
    if isinstance(value, Tensor):
        return {name: _short(json.dumps(value.tolist()))}
    if isinstance(value, list | tuple | dict):
        try:
            return {name: _short(json.dumps(value))}
        except TypeError:  # holds objects
            items = value.items() if isinstance(value, dict) else enumerate(value)
            parts = {f"{name}.{key}": item for key, item in items}
            return {name: len(value)} | _all(parts)
    if isinstance(value, HasRecipe):
        return {name: type(value).__name__} | _all({f"{name}.{key}": arg for key, arg in value._arguments.items()})
    if callable(value) and not isinstance(value, nn.Module):
        return {name: getattr(value, "__qualname__", type(value).__name__)}
    public = {key: item for key, item in getattr(value, "__dict__", {}).items() if not key.startswith("_")}
    plain = {key: item for key, item in public.items() if item is None or isinstance(item, bool | int | float | str)}
    plain.pop("training", None)
    return {name: type(value).__name__} | _all({f"{name}.{key}": item for key, item in plain.items()})


def check_same_settings(saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuses `present` settings where those `saved` differ; a name that was not saved says nothing.

    Raises:
        ValueError: with the first difference.
    """
    for name, value in present.items():
        if saved.get(name, value) != value:
            raise ValueError(
                f"the rounds on disk have {name} = {saved[name]}, this config has {value}; use the config they began "
                "with, or another trainer.default_root_dir"
            )


def _all(parts: Mapping[str, Any]) -> dict[str, Any]:
    """All parts described."""
    return {key: item for name, value in parts.items() for key, item in describe_settings(name, value).items()}


def _short(text: str) -> str:
    """`text`, or its hash where it is long."""
    return text if len(text) <= _LONGEST else f"{text[:20]}... ({hashlib.sha256(text.encode()).hexdigest()[:12]})"
