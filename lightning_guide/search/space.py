"""A space of evaluations: what is the same everywhere, and named axes along which something varies."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_guide.snapshots.names import parse_images
from lightning_guide.utils.recipe import merge_settings

__all__ = ["Axis", "OWN", "Place", "Space", "UNGUIDED"]


Place = tuple[int, ...]


"""A point of a space: the number of its value on each axis."""


UNGUIDED: Place = ()


"""The place of no guidance at all, which every search compares with."""


OWN = ("metrics", "num_samples", "repetitions", "seed", "first_index")


"""What a search decides itself, so that all points are drawn from the same seeds and judged in the same way."""


@dataclass(frozen=True)
class Axis:
    """One thing that varies.

    Attributes:
        name: as in tables and figures.
        path: dotted path into an evaluation, such as guidance.init_args.weight.
        values: what stands there, point by point; a mapping is laid over what is there.
        prior: the value that a rule of thumb would begin with; default: the middle one.
        names: of the values, where they do not speak for themselves.
    """

    name: str
    path: str
    values: tuple[Any, ...]
    prior: Any = None
    names: tuple[str, ...] = ()

    @property
    def begin(self) -> int:
        """Number of the value to begin with."""
        return len(self.values) // 2 if self.prior is None else self.values.index(self.prior)

    @property
    def shown(self) -> tuple[Any, ...]:
        """The values as in tables and figures."""
        return self.names or self.values

    @property
    def ordered(self) -> bool:
        """Whether its values are numbers or fractions, so that neighbors are alike."""
        return all(_is_number(value) for value in self.values)


class Space:
    """The grid of all combinations of the values on `axes`, of one `evaluation` otherwise."""

    def __init__(self, evaluation: Mapping[str, Any], axes: Sequence[Axis]) -> None:
        """`evaluation` as plain data, every default written out.

        Raises:
            ValueError: naming the axis, if there is none, its path leads nowhere, or it has no values or one twice; if
                two points come out as one evaluation.
        """
        self.base, self.axes = dict(evaluation), tuple(axes)
        if not self.axes:
            raise ValueError("the search has no axes; expected axes: name -> {path, values}")
        for axis in self.axes:
            self._check(axis)
        seen: dict[str, Place] = {}
        for place in self.places:
            other = seen.setdefault(json.dumps(self.evaluation(place), sort_keys=True, default=str), place)
            if other != place:
                raise ValueError(
                    f"the points {self.name(other)} and {self.name(place)} are the same evaluation; "
                    "expected axes of which none overwrites another"
                )

    @property
    def places(self) -> list[Place]:
        """All points of the grid, the last axis running fastest."""
        return list(itertools.product(*(range(len(axis.values)) for axis in self.axes)))

    def values(self, place: Place) -> dict[str, Any]:
        """Axis -> value; empty for UNGUIDED."""
        return {axis.name: axis.values[i] for axis, i in zip(self.axes, place, strict=False)}

    def shown(self, place: Place) -> dict[str, Any]:
        """Axis -> value, by its name if it has one."""
        return {axis.name: axis.shown[i] for axis, i in zip(self.axes, place, strict=False)}

    def name(self, place: Place) -> str:
        """Words for a point, such as `age=1/8 weight=2`."""
        words = [f"{axis}={_word(value)}" for axis, value in self.shown(place).items()]
        return " ".join(words) or "unguided"

    def evaluation(self, place: Place) -> dict[str, Any]:
        """The evaluation at a point, as plain data; long paths are followed within what stands at shorter ones.

        Raises:
            ValueError: if a path leads nowhere in what another axis has put there.
        """
        found = copy.deepcopy(self.base)
        if place == UNGUIDED:
            return found | {"guidance": None}
        at = zip(self.axes, place, strict=True)
        for axis, i in sorted(at, key=lambda each: each[0].path.count(".")):
            *way, last = axis.path.split(".")
            node: Any = found
            for key in way:
                node = node.setdefault(key, {})
                if not isinstance(node, dict):
                    raise ValueError(f"axis {axis.name!r}: {axis.path} leads nowhere at {self.name(place)}")
            node[last] = merge_settings(node.get(last), axis.values[i])
        return found

    def position(self, place: Place) -> list[float]:
        """Where a point lies for a smooth model: [0, 1] along an ordered axis, a corner of its own for other values."""
        found: list[float] = []
        for axis, i in zip(self.axes, place, strict=True):
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
            raise ValueError(f"axis {axis.name!r}: its prior {axis.prior!r} is none of its values {list(axis.values)}")
        parts = axis.path.split(".")
        if parts[0] in OWN:
            raise ValueError(f"axis {axis.name!r} varies {parts[0]}, which the search sets for all points alike")
        node: Any = self.base
        for depth, key in enumerate(parts):
            if not isinstance(node, Mapping) or key not in node:
                where = ".".join(parts[:depth]) or "the evaluation"
                holds = f"holds {', '.join(map(str, node))}" if isinstance(node, Mapping) else f"is {node!r}"
                raise ValueError(f"axis {axis.name!r}: there is no {axis.path!r}; {where} {holds}")
            node = node[key]


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        return isinstance(value, int | float) or parse_images(value) is not None
    except ValueError:
        return False


def _word(value: Any) -> str:
    """A value in a name."""
    if isinstance(value, Mapping):
        return "{" + " ".join(f"{key}:{_word(each)}" for key, each in value.items()) + "}"
    return str(value)
