"""Files of guidances, such as configs/guidance/pag.yaml: read, and built."""

from __future__ import annotations

from argparse import ArgumentError
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

import lightning_guide.guidance  # noqa: F401  # short class names are found among classes that are imported
from lightning_guide.denoiser import Denoiser
from lightning_guide.utils.files import read_yaml

__all__ = ["build_guidances", "read_guidances"]


def read_guidances(methods: list[str]) -> dict[str, dict[str, Any]]:
    """Name -> guidance of the files `methods`, or of all files in a folder, as written there.

    Raises:
        ValueError: if a file is no YAML or holds no guidances, or two guidances share a name.
    """
    paths = [Path(path) for path in methods]
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
    """The guidances that `written` describes, references to models not yet resolved.

    Raises:
        ValueError: if a class or an argument is unknown.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--guidances", type=dict[str, Denoiser])
    try:
        built: dict[str, Denoiser] = parser.instantiate(parser.parse_object({"guidances": written})).guidances
    except ArgumentError as error:
        raise ValueError(str(error)) from None
    return built
