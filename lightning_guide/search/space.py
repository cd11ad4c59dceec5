"""Search space: one evaluation with named axes along which settings vary."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_guide.snapshots.names import parse_images
from lightning_guide.utils.config_base import merge_settings
from lightning_guide.utils.errors import nearest

__all__ = ["Axis", "OWN", "Point", "Space", "UNGUIDED"]


Point = tuple[int, ...]


"""Point of a space: the index of its value on each axis."""


UNGUIDED: Point = ()


"""The point without any guidance, the baseline of every search."""


OWN = ("metrics", "num_samples", "repetitions", "seed", "first_index")


"""Settings that the search sets: all points share seeds and metrics."""


@dataclass(frozen=True)
class Axis:
    """One setting that varies.

    Attributes:
        name: as in tables and figures.
        path: dotted path into an evaluation, such as guidance.init_args.weight; entries of a list by number, from 0.
        values: its values, one for each point; a mapping is merged into the setting of the evaluation.
        prior: the value that a rule of thumb would begin with; default: the middle one.
        names: of the values, where they are not self-explanatory.
    """

    name: str
    path: str
    values: tuple[Any, ...]
    prior: Any = None
    names: tuple[str, ...] = ()

    @property
    def begin(self) -> int:
        """Index of the first value to try."""
        return len(self.values) // 2 if self.prior is None else self.values.index(self.prior)

    @property
    def shown(self) -> tuple[Any, ...]:
        """Values as shown in tables and figures."""
        return self.names or self.values

    @property
    def ordered(self) -> bool:
        """Whether its values are numbers or fractions, so that neighbors score alike."""
        return all(_is_number(value) for value in self.values)


class Space:
    """Grid of all combinations of the values on `axes`, applied to one `evaluation`."""

    def __init__(self, evaluation: Mapping[str, Any], axes: Sequence[Axis]) -> None:
        """`evaluation` as plain data, every default written out.

        Raises:
            ValueError: naming the axis, if there is none, its path does not exist, or it has no values or one twice; if
                two points come out as one evaluation.
        """
        self.base, self.axes = dict(evaluation), tuple(axes)
        if not self.axes:
            raise ValueError("the search has no axes; expected axes: name -> {path, values}")
        for axis in self.axes:
            self._check(axis)
        seen: dict[str, Point] = {}
        for point in self.points:
            other = seen.setdefault(json.dumps(self.evaluation(point), sort_keys=True, default=str), point)
            if other != point:
                raise ValueError(
                    f"the points {self.name(other)} and {self.name(point)} are the same evaluation; "
                    "expected axes of which none overwrites another"
                )

    @property
    def points(self) -> list[Point]:
        """All points of the grid, the last axis running fastest."""
        return list(itertools.product(*(range(len(axis.values)) for axis in self.axes)))

    def values(self, point: Point) -> dict[str, Any]:
        """Axis -> value; empty for UNGUIDED."""
        return {axis.name: axis.values[i] for axis, i in zip(self.axes, point, strict=False)}

    def shown(self, point: Point) -> dict[str, Any]:
        """Axis -> value, by its name if it has one."""
        return {axis.name: axis.shown[i] for axis, i in zip(self.axes, point, strict=False)}

    def name(self, point: Point) -> str:
        """Name of a point, such as `age=1/8 weight=2`."""
        words = [f"{axis}={_word(value)}" for axis, value in self.shown(point).items()]
        return " ".join(words) or "unguided"

    def evaluation(self, point: Point) -> dict[str, Any]:
        """The evaluation at a point, as plain data; longer paths are applied after shorter ones.

        Raises:
            ValueError: if a path does not exist in the value of another axis.
        """
        found = copy.deepcopy(self.base)
        if point == UNGUIDED:
            return found | {"guidance": None}
        at = zip(self.axes, point, strict=True)
        for axis, i in sorted(at, key=lambda each: each[0].path.count(".")):
            node: Any = found
            for key in axis.path.split("."):
                parent, entries = node, _entries(node)
                if not isinstance(parent, dict) and key not in entries:
                    raise ValueError(f"axis {axis.name!r}: {axis.path} does not exist at {self.name(point)}")
                node = entries.setdefault(key, {})
            parent[int(key) if isinstance(parent, list) else key] = merge_settings(node, axis.values[i])
        return found

    def position(self, point: Point) -> list[float]:
        """Coordinates of a point for a smooth model: [0, 1] along an ordered axis, one-hot for other values."""
        found: list[float] = []
        for axis, i in zip(self.axes, point, strict=True):
            if axis.ordered:
                found.append(i / max(len(axis.values) - 1, 1))
            else:
                found += [float(i == j) for j in range(len(axis.values))]
        return found

    def _check(self, axis: Axis) -> None:
        if not axis.values:
            raise ValueError(f"axis {axis.name!r} has no values")
        if len({_word(value) for value in axis.values}) < len(axis.values):
            raise ValueError(f"axis {axis.name!r} has one value twice: {list(axis.values)}")
        if axis.prior is not None and axis.prior not in axis.values:
            raise ValueError(
                f"axis {axis.name!r}: its prior {axis.prior!r} is not one of its values {list(axis.values)}"
            )
        parts = axis.path.split(".")
        if parts[0] in OWN:
            raise ValueError(f"axis {axis.name!r} varies {parts[0]}, which the search sets for all points alike")
        node: Any = self.base
        for depth, key in enumerate(parts):
            entries = _entries(node)
            if key not in entries:
                where = ".".join(parts[:depth]) or "the evaluation"
                holds = f"holds {', '.join(map(str, entries))}" if entries else f"is {node!r}"
                near = nearest(key, list(map(str, entries)))
                hint = f" (did you mean {near}?)" if near else ""
                raise ValueError(f"axis {axis.name!r}: there is no {axis.path!r}{hint}; {where} {holds}")
            node = entries[key]


def _entries(node: Any) -> dict[str, Any]:
    """Return a mapping itself, the entries of a list by their numbers, nothing for any other value."""
    if isinstance(node, list):
        return {str(i): each for i, each in enumerate(node)}
    return node if isinstance(node, dict) else {}


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        return isinstance(value, int | float) or parse_images(value) is not None
    except ValueError:
        return False


def _word(value: Any) -> str:
    """Value as part of a name."""
    if isinstance(value, Mapping):
        return "{" + " ".join(f"{key}:{_word(each)}" for key, each in value.items()) + "}"
    return str(value)
