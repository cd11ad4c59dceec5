"""Samplers that the playground offers: by a number of steps, and those that repeat steps of the sampler of the run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

from lightning_guide import samplers
from lightning_guide.guidance import particles
from lightning_guide.utils.recipe import find_class

__all__ = ["is_of_particles", "name_of", "number_of_steps", "offered_samplers", "sampler_of", "samplers_left_out"]


def offered_samplers(own: Mapping[str, Any]) -> dict[str, str]:
    """Return name -> title of the samplers that are offered, `own` of the run first."""
    first, around = name_of(own), name_of(_repeated(own))
    titles = {name: f"{name} around {around}" if needed else name for name, needed in _needs().items()}
    own_title = f"{first}, without previews" if is_of_particles(own) else first
    left_out = samplers_left_out(own)
    return {first: own_title} | {name: each for name, each in titles.items() if name not in (first, *left_out)}


def samplers_left_out(own: Mapping[str, Any]) -> dict[str, str]:
    """Return name -> reason of the samplers of the library that are not offered."""
    found = {}
    for name, needed in _needs().items():
        if "energy" in needed:
            found[name] = "weighs particles by an energy, which only a config gives; offered if the run samples by it"
        elif needed and needed != ["sampler"]:
            found[name] = f"needs {' and '.join(needed)}, which only a config gives"
    return {name: why for name, why in found.items() if name != name_of(own)}


def sampler_of(name: str, steps: int, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sampler of so many steps as in a config: `own` with its other settings, another one with its defaults.

    Raises:
        ValueError: if it is not offered.
    """
    offered = offered_samplers(own)
    if name not in offered:
        raise ValueError(f"the sampler is {name!r}; expected some of {', '.join(offered)}")
    if name == name_of(own):
        return _with_steps(own, steps)
    if _needs()[name]:
        return {"class_path": name, "init_args": {"sampler": _with_steps(_repeated(own), steps)}}
    return {"class_path": name, "init_args": {"grid": steps}}


def number_of_steps(own: Mapping[str, Any]) -> int:
    """Return the steps of a sampler as in a config, 32 if it names none."""
    grid = (_innermost(own).get("init_args") or {}).get("grid")
    if isinstance(grid, dict):
        grid = (grid.get("init_args") or {}).get("num_steps")
    return grid if isinstance(grid, int) else 32


def name_of(written: Mapping[str, Any]) -> str:
    """Return the name of the class of a sampler as in a config."""
    return str(written["class_path"]).rpartition(".")[2]


def is_of_particles(written: Mapping[str, Any]) -> bool:
    """Whether a sampler as in a config draws each sample as several particles."""
    path = str(written["class_path"])
    return issubclass(find_class(path if "." in path else f"lightning_guide.{path}"), particles.ParticleSampler)


@cache
def _needs() -> dict[str, list[str]]:
    """Return name -> arguments without a default of the samplers of the library."""
    found = {}
    for package in (samplers, particles):
        for name in package.__all__:
            cls = getattr(package, name)
            if inspect.isclass(cls) and issubclass(cls, samplers.Sampler) and not inspect.isabstract(cls):
                parameters = inspect.signature(cls).parameters.values()
                found[name] = [each.name for each in parameters if each.default is each.empty]
    return found


def _repeated(own: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the sampler that another one can repeat: that inside `own`, for one of particles the one it moves by."""
    inner = _innermost(own)
    return {"class_path": "DDIM"} if is_of_particles(inner) else inner  # TDS


def _innermost(written: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the sampler inside samplers, which has the grid."""
    inner = (written.get("init_args") or {}).get("sampler")
    return written if inner is None else _innermost(inner)


def _with_steps(written: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Return a sampler with so many steps, whose grid keeps its other settings."""
    arguments = dict(written.get("init_args") or {})
    grid = arguments.get("grid")
    if "sampler" in arguments:
        arguments["sampler"] = _with_steps(arguments["sampler"], steps)
    elif isinstance(grid, dict) and "num_steps" in (grid.get("init_args") or {}):
        arguments["grid"] = grid | {"init_args": grid["init_args"] | {"num_steps": steps}}
    elif steps != number_of_steps(written) or not isinstance(grid, dict):
        arguments["grid"] = steps
    return {"class_path": written["class_path"], "init_args": arguments}
