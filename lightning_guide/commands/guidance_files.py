"""Files of guidances, such as configs/guidance/pag.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lightning_guide.denoiser import Denoiser
from lightning_guide.utils.errors import nearest
from lightning_guide.utils.explain import explain
from lightning_guide.utils.files import read_yaml
from lightning_guide.utils.parser import ConfigError, Parser, update_paths
from lightning_guide.utils.shipped import find_config

__all__ = ["build_guidances", "check_guidances", "guidance_paths", "read_guidances"]


def read_guidances(methods: list[str]) -> dict[str, dict[str, Any]]:
    """Read name -> guidance from the files `methods`, or from all files of a folder, as plain data.

    Raises:
        ValueError: if a file is no YAML or holds no guidances, or two guidances share a name.
    """
    guidances: dict[str, dict[str, Any]] = {}
    for file in guidance_paths(methods):
        found: Any = read_yaml(file)
        for key in ("model", "init_args", "guidances"):
            keys = found if isinstance(found, dict) else {}
            if not isinstance(keys.get(key), dict):
                near = nearest(key, [str(each) for each in keys])
                hint = f" (did you mean {key} by {near}?)" if near not in ("", key) else ""
                expected = "expected model.init_args.guidances: name -> guidance"
                raise ValueError(f"{file} names no guidances; {expected}{hint}")
            found = keys[key]
        if twice := guidances.keys() & found.keys():
            raise ValueError(f"{file} names the guidance {min(twice)!r}, which another file names, too")
        guidances |= found
    if not guidances:
        where = ", ".join(methods) or "nothing"
        raise ValueError(f"no guidances in {where}; expected files such as configs/guidance/pag.yaml")
    return guidances


def guidance_paths(methods: list[str]) -> list[Path]:
    """Return the files `methods`, and those in folders among them."""
    paths = [find_config(path) for path in methods]
    return [file for path in paths for file in (sorted(path.glob("*.yaml")) if path.is_dir() else [path])]


def check_guidances(written: dict[str, dict[str, Any]], methods: list[str] | None = None) -> None:
    """Check classes and names and types of arguments of `written`; nothing is built, `methods` are named in errors.

    Raises:
        ValueError: if a class or an argument is unknown, or a value has another type.
    """
    _parse(written, methods)


def build_guidances(written: dict[str, dict[str, Any]], methods: list[str] | None = None) -> dict[str, Denoiser]:
    """Build the guidances of `written`; references to models are not resolved, `methods` are named in errors.

    Raises:
        ValueError: if a class or an argument is unknown, or an argument is refused.
    """
    parser, parsed = _parse(written, methods)
    built: dict[str, Denoiser] = parser.instantiate(parsed).guidances
    return built


def _parse(written: dict[str, dict[str, Any]], methods: list[str] | None) -> tuple[Parser, Namespace]:
    parser = Parser()
    parser.add_argument("--guidances", type=dict[str, Denoiser])
    current = update_paths(written)
    try:
        return parser, parser.parse_object({"guidances": current})
    except ConfigError as error:
        at = ("model", "init_args", "guidances")
        files = guidance_paths(methods or [])
        raise ValueError(explain(str(error), current, dict[str, Denoiser], at=at, files=files)) from None
