"""Files of guidances, such as configs/guidance/pag.yaml."""

from __future__ import annotations

from typing import Any

from lightning_guide.denoiser import Denoiser
from lightning_guide.utils.files import read_yaml
from lightning_guide.utils.parser import PythonParser, update_paths
from lightning_guide.utils.shipped import find_config

__all__ = ["build_guidances", "read_guidances"]


def read_guidances(methods: list[str]) -> dict[str, dict[str, Any]]:
    """Read name -> guidance from the files `methods`, or from all files of a folder, as plain data.

    Raises:
        ValueError: if a file is no YAML or holds no guidances, or two guidances share a name.
    """
    paths = [find_config(path) for path in methods]
    files = [file for path in paths for file in (sorted(path.glob("*.yaml")) if path.is_dir() else [path])]
    guidances: dict[str, dict[str, Any]] = {}
    for file in files:
        content = read_yaml(file)
        try:
            found = dict(content["model"]["init_args"]["guidances"])
        except (KeyError, TypeError, ValueError):
            expected = "expected model.init_args.guidances: name -> guidance"
            raise ValueError(f"{file} names no guidances; {expected}") from None
        if twice := guidances.keys() & found.keys():
            raise ValueError(f"{file} names the guidance {min(twice)!r}, which another file names, too")
        guidances |= found
    if not guidances:
        where = ", ".join(methods) or "nothing"
        raise ValueError(f"no guidances in {where}; expected files such as configs/guidance/pag.yaml")
    return guidances


def build_guidances(written: dict[str, dict[str, Any]]) -> dict[str, Denoiser]:
    """Build the guidances of `written`; references to models are not resolved.

    Raises:
        ValueError: if a class or an argument is unknown, or an argument is refused.
    """
    parser = PythonParser()
    parser.add_argument("--guidances", type=dict[str, Denoiser])
    parsed = parser.parse_object({"guidances": update_paths(written)})
    built: dict[str, Denoiser] = parser.instantiate(parsed).guidances
    return built
