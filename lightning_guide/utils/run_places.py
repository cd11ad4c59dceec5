"""A run is where its folder is: paths in the config of a copied, moved or renamed run follow the folder."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import Any

__all__ = ["LOCK", "holds_models", "in_place", "run_of_config"]

LOCK = ".lock"
"""Lock file of a run folder."""

_CONFIG = re.compile(r"config(\.\w+)?\.yaml")
_TRACES = (  # what only a run writes next to its config
    "snapshots/*.safetensors",
    "half_life/snapshots/*.safetensors",
    "checkpoints/*.ckpt",
    "tensorboard/events.out.*",
    "rounds/state.ckpt",
    "report/environment.json",
    LOCK,
)
_KEYS = ("run", "folder", "save_dir", "dirpath", "path", "ckpt_path")  # whose values are paths, even without a slash
_NO_PATH = re.compile(r"[\d./]*|[A-Za-z][\w+.-]+:.*", re.DOTALL)  # fractions such as 1/16, URLs


def run_of_config(path: str | os.PathLike[str]) -> Path | None:
    """Return the folder of the run whose config.yaml (or config.COMMAND.yaml) `path` is; None for other files."""
    folder = Path(path).parent
    if not _CONFIG.fullmatch(os.path.basename(path)) or not any(next(folder.glob(each), None) for each in _TRACES):
        return None
    return folder


def holds_models(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds snapshots or checkpoints of a run."""
    return any(Path(folder, part).is_dir() for part in ("snapshots", "half_life", "checkpoints", "rounds"))


def in_place(settings: Any, folder: str | Path) -> Any:
    """Return the `settings` of a config that was found in the run `folder`, with its paths where they are now.

    `trainer.default_root_dir` becomes `folder`. If it named another folder, the run was copied, moved or renamed:

    - paths in that folder become paths in `folder`;
    - paths beside that folder, such as other runs, are those beside `folder` if they exist there;
    - other paths stay, unless nothing exists there, but in the same place relative to `folder`.
    """
    if not isinstance(settings, dict):
        return settings
    given = settings.get("trainer")
    trainer = given if isinstance(given, dict) else {}
    written = trainer.get("default_root_dir")
    moved = settings
    if isinstance(written, str) and not (os.path.isdir(written) and os.path.samefile(written, folder)):
        moved = _moved(settings, "", os.path.abspath(os.path.expanduser(written)), str(folder))
    return moved | {"trainer": moved.get("trainer", {}) | {"default_root_dir": str(folder)}} if trainer else moved


def _moved(value: Any, key: str, old: str, folder: str) -> Any:
    if isinstance(value, dict):
        return {name: _moved(each, str(name), old, folder) for name, each in value.items()}
    if isinstance(value, list):
        return [_moved(each, key, old, folder) for each in value]
    is_path = isinstance(value, str) and (os.sep in value or key in _KEYS) and not _NO_PATH.fullmatch(value)
    return _place(value, old, folder) if is_path else value


def _place(text: str, old: str, folder: str) -> str:
    """Return where the path `text` of a run that was in `old` is, now that it is in `folder`."""
    relative = os.path.relpath(os.path.abspath(os.path.expanduser(text)), old)
    up, now = relative.split(os.sep)[:2], os.path.normpath(os.path.join(folder, relative))
    if up[0] != os.pardir and os.path.commonpath([old, os.getcwd()]) != old:  # else all relative paths would be inside
        return now
    places = [now, os.path.normpath(os.path.join(os.path.realpath(folder), relative)), text]
    if up[:2] == [os.pardir, os.pardir]:
        places = [text, *places[:2]]
    return next((place for place in places if _exists(place)), text)


def _exists(path: str) -> bool:
    """Return whether something is at `path`; of a pattern, in its folder."""
    fixed = re.split(r"[*?\[{]", os.path.expanduser(path))[0]
    return os.path.exists(fixed if fixed == path else os.path.dirname(fixed)) or bool(glob.glob(path))
