"""Search files, such as configs/search/autoguidance.yaml, and their objectives.

The YAML file of a search: which evaluation, what varies, how it is judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_guide.search.scores import Scores
from lightning_guide.search.space import OWN, Axis
from lightning_guide.utils.errors import nearest
from lightning_guide.utils.files import read_yaml
from lightning_guide.utils.scalars import check_whole

__all__ = ["SearchObjective", "SearchFile", "check_objectives", "read_search"]


@dataclass(frozen=True)
class SearchObjective:
    """Metric that is minimized or maximized."""

    metric: str
    lowest: bool = True

    def loss(self, scores: Scores) -> float:
        """Value to minimize; infinite where the metric is not a number."""
        value = scores.values[self.metric]
        return math.inf if math.isnan(value) else value if self.lowest else -value


def check_objectives(objectives: Sequence[SearchObjective], scores: Scores) -> None:
    """Refuse a metric that was not reported.

    Raises:
        ValueError: naming those that are.
    """
    for objective in objectives:
        if objective.metric not in scores.values:
            there = ", ".join(scores.values)
            raise ValueError(f"the metric {objective.metric!r} is not reported; there are: {there}")


_LOWEST = {"lowest": True, "highest": False}
_LEAST = {"block": 1, "blocks": 1, "seed": 0}


@dataclass(frozen=True)
class SearchFile:
    """Contents of a search file.

    Attributes:
        evaluation: laid over the first evaluation of the run.
        axes: what varies.
        metrics: name -> metric, as in a config; None: those of the run.
        block: samples in a block.
        blocks: how many of them a sweep draws at each point.
        seed: of the samples.
        objectives: what a tuner looks for.
        images: age of the model under evaluation; None: as in the run's config.
        average: width of its average; None: likewise.
    """

    evaluation: dict[str, Any]
    axes: tuple[Axis, ...]
    metrics: dict[str, Any] | None = None
    block: int = 100
    blocks: int = 10
    seed: int = 0
    objectives: tuple[SearchObjective, ...] = ()
    images: int | float | str | None = None
    average: float | None = None


def read_search(path: str | Path) -> SearchFile:
    """Read a file such as configs/search/autoguidance.yaml.

    Raises:
        ValueError: naming the file and what is wrong in it.
    """
    content = read_yaml(path)
    known = tuple(SearchFile.__dataclass_fields__)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds {'nothing' if content is None else repr(content)}; expected {', '.join(known)}")
    if odd := [key for key in content if key not in known]:
        near = next(filter(None, (nearest(str(key), known) for key in odd)), "")
        hint = f" (did you mean {near}?)" if near else ""
        raise ValueError(f"{path}: {odd} is not a key of a search{hint}; expected {', '.join(known)}")
    try:
        axes = tuple(_axis(str(name), each) for name, each in _named(content, "axes").items())
        objectives = tuple(_objective(str(name), aim) for name, aim in _named(content, "objectives").items())
        evaluation = _evaluation(_named(content, "evaluation"))
        metrics = None if content.get("metrics") is None else _named(content, "metrics")
        counts = {key: check_whole(content[key], key, least=n) for key, n in _LEAST.items() if key in content}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    model = {key: content[key] for key in ("images", "average") if key in content}
    return SearchFile(evaluation, axes, metrics, objectives=objectives, **counts, **model)


def _named(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} is {value!r}; expected a mapping from names to values")
    return dict(value)


def _evaluation(written: dict[str, Any]) -> dict[str, Any]:
    if own := [key for key in OWN if key in written]:
        raise ValueError(
            f"its evaluation sets {', '.join(own)}, which the search sets; expected metrics, block, blocks "
            "or seed next to it"
        )
    return written


def _axis(name: str, written: Any) -> Axis:
    if not isinstance(written, Mapping) or not {"path", "values"} <= written.keys() <= {"path", "values", "prior"}:
        odd = written.keys() - {"path", "values", "prior"} if isinstance(written, Mapping) else set()
        near = next(filter(None, (nearest(str(key), ("path", "values", "prior")) for key in odd)), "")
        hint = f" (did you mean {near}?)" if near else ""
        raise ValueError(f"axis {name!r} is {written!r}; expected path, values and maybe prior{hint}")
    values, prior = written["values"], written.get("prior")
    if isinstance(values, Mapping):
        if prior is not None and prior not in list(values):
            raise ValueError(f"axis {name!r}: its prior {prior!r} is not one of its values {list(values)}")
        prior = None if prior is None else values[prior]
        return Axis(name, str(written["path"]), tuple(values.values()), prior, tuple(map(str, values)))
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(f"axis {name!r} has values {values!r}; expected a list, or a mapping from names to values")
    return Axis(name, str(written["path"]), tuple(values), prior)


def _objective(metric: str, aim: Any) -> SearchObjective:
    if not isinstance(aim, str) or aim not in _LOWEST:
        hint = f" (did you mean {near}?)" if (near := nearest(str(aim), _LOWEST)) else ""
        raise ValueError(f"objective {metric!r} is {aim!r}; expected lowest or highest{hint}")
    return SearchObjective(metric, _LOWEST[aim])
