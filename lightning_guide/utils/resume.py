"""Resume results on disk only with the settings that they were made with."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_guide.utils.files import atomic, parse_json
from lightning_guide.utils.locks import FolderLock
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["ResumableFolder", "check_same_settings", "describe_settings", "plain_data", "read_record"]


_LONGEST = 80  # characters of a list that are stored literally


def describe_settings(name: str, value: Any) -> dict[str, Any]:
    """Return `value` as plain data by dotted names: ``{"target": "Gain", "target.delta": 0.2}``.

    An object that does not record its arguments is described by its public numbers and strings.
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


def plain_data(value: Any) -> Any:
    """Return `value` as JSON stores it: tuples as lists, numbers that are not finite as None, other objects as text.

    Examples:
        >>> plain_data({"sigmas": (0.5, float("inf"))})
        {'sigmas': [0.5, None]}
    """
    return json.loads(json.dumps(_finite(value), allow_nan=False, default=str))


def check_same_settings(
    saved: Mapping[str, Any], settings: Mapping[str, Any], *, place: str | Path, alternative: str = "another folder"
) -> None:
    """Refuse `settings` that differ from those `saved` in `place`; a missing key equals None.

    Raises:
        ValueError: naming the place, the first key that differs, its old and its new value.
    """
    difference = _first_difference(saved, settings)
    if difference:
        raise ValueError(
            f"{place} was made with other settings: {difference}; expected the same settings or {alternative}"
        )


def read_record(path: Path, key: str = "settings") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings and the further content of the file of a `ResumableFolder`.

    Raises:
        ValueError: if the file holds something else.
    """
    try:
        content = dict(parse_json(path.read_bytes(), path))
        saved = content.pop(key)
        if isinstance(saved, dict):
            return saved, content
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} does not record {key!r} of earlier results; expected another folder or no such file")


class ResumableFolder:
    """Folder of results that is only resumed with the same settings, which are recorded in one JSON file.

    The file holds ``{"settings": ..., **content}`` as plain data. Settings without results do not bind: a folder whose
    first call ended before its first result accepts other settings.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Mapping[str, Any],
        *,
        results: str | Callable[[dict[str, Any]], bool],
        key: str = "settings",
        alternative: str = "another folder",
    ) -> None:
        """Set the file and the settings; nothing is read yet.

        Args:
            path: JSON file in the folder.
            settings: everything that the results depend on, stored as `plain_data`.
            results: pattern of the files of results in the folder, or whether the content of the file has results.
            key: name of the settings in the file.
            alternative: what to use in place of the same settings, for messages.
        """
        self.path, self.settings = Path(path), plain_data(settings)
        self.results, self.key, self.alternative = results, key, alternative

    def read(self) -> dict[str, Any]:
        """Return the content recorded with the same settings, an empty dict without results of other settings.

        Raises:
            ValueError: if there are results of other settings or without the file, or the file holds something else.
        """
        if not self.path.exists():
            if files := self._files():
                raise ValueError(
                    f"{files[0]} exists without {self.path.name}; expected a folder without {self.results}"
                )
            return {}
        saved, content = read_record(self.path, self.key)
        saved = plain_data(saved)
        if self.has_results(content):
            check_same_settings(saved, self.settings, place=self.path, alternative=self.alternative)
        return {} if _first_difference(saved, self.settings) else content

    def lock(self) -> FolderLock:
        """Return the lock of the folder, for the one process that writes these results."""
        return FolderLock(self.path.with_name(f".{self.path.name}.lock"), what=f"{self.path}")

    def has_results(self, content: dict[str, Any]) -> bool:
        """Return whether the folder has results, with `content` in its file."""
        return bool(self._files()) if isinstance(self.results, str) else self.results(content)

    def write(self, content: Mapping[str, Any], *, last: str = "", durable: bool = True) -> None:
        """Write settings, `content` and the JSON of a `last` key and value atomically; `durable` as in `atomic`."""
        text = json.dumps({self.key: self.settings} | plain_data(content), indent=1)
        text = f"{text[:-2]},\n {last}\n}}" if last else text
        with atomic(self.path, durable=durable) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    def _files(self) -> list[Path]:
        """Files of results."""
        return sorted(self.path.parent.glob(self.results)) if isinstance(self.results, str) else []


def _first_difference(saved: Any, settings: Any, where: str = "") -> str | None:
    """Describe the first difference of two trees of plain data, None if they are equal."""
    if isinstance(saved, Mapping) and isinstance(settings, Mapping):
        keys = [*saved, *(key for key in settings if key not in saved)]
        pairs = ((f"{where}.{key}" if where else key, saved.get(key), settings.get(key)) for key in keys)
        return next((found for key, old, new in pairs if (found := _first_difference(old, new, key))), None)
    return None if saved == settings else f"{where} was {_shown(saved)} and is now {_shown(settings)}"


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite by None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _shown(value: Any) -> str:
    """A value for messages, at most 100 characters."""
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _all(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Describe all parts."""
    return {key: item for name, value in parts.items() for key, item in describe_settings(name, value).items()}


def _short(text: str) -> str:
    """Return `text`, or its start and its hash if it is long."""
    return text if len(text) <= _LONGEST else f"{text[:20]}... ({hashlib.sha256(text.encode()).hexdigest()[:12]})"
