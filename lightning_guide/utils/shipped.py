"""Configs that come with the package, by the paths that the documentation names, such as configs/digits/main.yaml.

A wheel holds them in `lightning_guide/configs`; in a checkout they lie beside the package. A file of the working folder
comes first, so that a copy (`lightning-guide init configs`) can be edited.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["find_config", "how_to_train", "shipped_configs", "with_shipped_configs"]

_PACKAGE = Path(__file__).resolve().parents[1]
_OPTION = re.compile(r"(?P<option>-c|--config=)?(?P<path>configs/.+)")


def shipped_configs() -> Path:
    """Return the folder of the configs that come with the package.

    Raises:
        ValueError: if the installation has none.
    """
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if (folder / "base").is_dir():
            return folder
    raise ValueError(f"the installation in {_PACKAGE} has no configs; expected them in {_PACKAGE / 'configs'}")


def find_config(path: str | Path, folder: str | Path = "") -> Path:
    """Return `path` in `folder`, default the working folder; a missing ``configs/...`` may be one of the package."""
    top, *parts = Path(path).parts or [""]
    beside = Path(folder, Path(path).expanduser())
    if top != "configs" or beside.exists():
        return beside
    shipped = shipped_configs().joinpath(*parts)
    return shipped if shipped.exists() else beside


def how_to_train(run: str | Path) -> str:
    """Return the command that trains `run`, for the end of a message, if it is the run of a config of the package."""
    place = re.compile(rf"^  default_root_dir: {re.escape(Path(run).as_posix())}\s*(#.*)?$", re.MULTILINE)
    try:
        folder = shipped_configs()
    except ValueError:
        return ""
    for path in sorted(folder.rglob("*.yaml")):
        if place.search(path.read_text(encoding="utf-8")):
            return f"; train it first: lightning-guide fit -c configs/{path.relative_to(folder).as_posix()}"
    return ""


def with_shipped_configs(words: Sequence[str]) -> list[str]:
    """Replace the values of -c and --config on a command line by the paths that `find_config` returns."""
    found = []
    for before, word in itertools.pairwise(["", *words]):
        match = _OPTION.fullmatch(word)
        if match and (match["option"] or before in ("-c", "--config")):
            word = f"{match['option'] or ''}{find_config(match['path'])}"
        found.append(word)
    return found
