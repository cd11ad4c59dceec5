"""Guidances that the playground offers: the files of configs/guidance, with parameters from the signatures of classes.

A parameter has a dotted place in the arguments of its guidance: `weight`, `combination.eta`, `guider.sigma_rel`.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lightning_guide.commands.guidance_files import guidance_paths, read_guidances
from lightning_guide.guidance.base import Reference
from lightning_guide.utils.parser import update_paths
from lightning_guide.utils.recipe import find_class

__all__ = ["Method", "Parameter", "read_methods", "read_value"]


# Annotations of arguments that are written as one number, word or list of them.
_PLAIN = re.compile(r"(int|float|str|bool|None|Literal\[[^\]]*\]|(Sequence|list)\[(str|int|float)\]|\s|\|)+")


@dataclass(frozen=True)
class Parameter:
    """Parameter of a guidance: its dotted place, the value in the config or else the default, and what it is."""

    place: str
    value: Any
    help: str = ""

    @property
    def is_weight(self) -> bool:
        """Whether it is a number by which a guidance is weighted."""
        names = [each for each in self.place.split(".") if not each.isdigit()]
        return names[-1] in ("weight", "weights") and isinstance(self.value, int | float)


@dataclass(frozen=True)
class Method:
    """Guidance of a file: its name, what it is, the first lines of its classes, the written config, its parameters.

    `note` says how it differs from the file.
    """

    name: str
    title: str
    summary: str
    written: Mapping[str, Any]
    parameters: tuple[Parameter, ...]
    note: str = ""

    def guidance(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the guidance as in a config, with `values` by place in place of its own; equal ones are left out.

        Raises:
            ValueError: if it has no parameter of that place.
        """
        known = {each.place: each.value for each in self.parameters}
        found: dict[str, Any] = copy.deepcopy(dict(self.written))
        for place, value in values.items():
            if place not in known:
                raise ValueError(f"{self.name} has no parameter {place!r}; expected some of {', '.join(known)}")
            if value != known[place] or type(value) is not type(known[place]):
                _put(found, place.split("."), value)
        return found

    def with_values(self, values: Mapping[str, Any]) -> Method:
        """Return the method with other values at the places of `values`."""
        parameters = tuple(replace(each, value=values.get(each.place, each.value)) for each in self.parameters)
        return replace(self, written=self.guidance(values), parameters=parameters)


def read_methods(files: list[str] | None = None) -> dict[str, Method]:
    """Return name -> method of the files, or of the folders of them; default: configs/guidance.

    Raises:
        ValueError: if a file holds no guidances.
    """
    found = {}
    for file in guidance_paths(files or ["configs/guidance"]):
        for name, written in read_guidances([str(file)]).items():
            written = update_paths(written)
            found[name] = Method(name, _title(file, name), _summary(written), written, tuple(_parameters(written)))
    return found


def _summary(written: Mapping[str, Any]) -> str:
    """Return the first lines of the classes of a guidance: its own and those in it, without references to models."""
    return " ".join((inspect.getdoc(cls) or "").partition("\n")[0] for cls in _classes(written))


def _classes(written: Any) -> Iterator[Any]:
    """Yield the classes of a guidance as in a config, without references to models."""
    if isinstance(written, dict) and "class_path" in written:
        cls = _class_of(written)
        if issubclass(cls, Reference):
            return
        yield cls
    for each in written.values() if isinstance(written, dict) else written if isinstance(written, list) else ():
        yield from _classes(each)


def read_value(text: str) -> Any:
    """Return the value of a parameter as in YAML.

    Raises:
        ValueError: if it is not valid.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is no value of YAML: {' '.join(str(error).split())}") from None


def _title(file: Path, name: str) -> str:
    """Return the comment above the guidance `name` of a file, else the first of the file without its address."""
    text = file.read_text(encoding="utf-8")
    above = re.search(rf"^ +# (.+)\n +{re.escape(name)}:", text, re.MULTILINE)
    first = re.match(r"# (.+?)(: http.*)?\n", text)
    return above[1] if above else first[1] if first else ""


def _class_of(written: Mapping[str, Any]) -> Any:
    path = str(written["class_path"])
    return find_class(path if "." in path else f"lightning_guide.{path}")


def _parameters(written: Any, place: str = "") -> Iterator[Parameter]:
    """Yield the plain arguments of a guidance and of the objects in it, in the order of their signatures."""
    if isinstance(written, list):
        for i, each in enumerate(written):
            if isinstance(each, dict) or place.endswith("weights"):
                yield from _parameters(each, f"{place}.{i}")
    elif isinstance(written, dict) and "class_path" in written:
        given = written.get("init_args") or {}
        cls = _class_of(written)
        described = _help_of(cls)
        for name, parameter in inspect.signature(cls).parameters.items():
            at = f"{place}.{name}".lstrip(".")
            value = given.get(name, parameter.default)
            nested = isinstance(value, dict) or (isinstance(value, list) and (name == "weights" or _objects(value)))
            if nested:
                yield from _parameters(value, at)
            elif name in given or _is_plain(parameter):
                yield Parameter(at, list(value) if isinstance(value, tuple) else value, described.get(name, ""))
    else:
        yield Parameter(place, written)


def _objects(values: list[Any]) -> bool:
    return any(isinstance(each, dict) for each in values)


def _is_plain(parameter: inspect.Parameter) -> bool:
    """Whether an argument that a config does not give is a number, word or list with a default."""
    if parameter.default is inspect.Parameter.empty:
        return False
    annotation = str(parameter.annotation)
    return isinstance(parameter.default, bool | int | float | str) or _PLAIN.fullmatch(annotation) is not None


def _help_of(cls: Any) -> dict[str, str]:
    """Return argument -> one line about it in the docstring of `cls`, or of the class there to which that refers."""
    found = _described(inspect.getdoc(cls.__init__) or "")
    for name, said in found.items():
        referred = re.search(r"as in `(\w+)`", said)
        other = getattr(inspect.getmodule(cls), referred[1], None) if referred else None
        if inspect.isclass(other):
            found[name] = _described(inspect.getdoc(other.__init__) or "").get(name, said)
    return found


def _described(text: str) -> dict[str, str]:
    """Return argument -> first line of its description in the section Args of a docstring, else the part that names it.

    Examples:
        >>> _described("`weight` is 1 + alpha; `decay` as in `AverageVelocity`.")["decay"]
        '`decay` as in `AverageVelocity`'
    """
    before, _, section = text.partition("Args:\n")
    found = dict(re.findall(r"^ {4}(\w+): (.+)$", section.partition("\n\n")[0], re.MULTILINE))
    for part in re.split(r"(?<=[.;])\s+", " ".join(before.partition("Raises:")[0].split())):
        for name in re.findall(r"`(\w+)`", part):
            found.setdefault(name, part.rstrip(".;"))
    return found


def _put(written: Any, names: list[str], value: Any) -> None:
    """Set the argument at a dotted place of a config."""
    first, *rest = names
    if isinstance(written, dict):
        written = written.setdefault("init_args", {})
        if rest:
            _put(written[first], rest, value)
        else:
            written[first] = value
    elif rest:
        _put(written[int(first)], rest, value)
    else:
        written[int(first)] = value
