"""Network calls per sample (NFE) of the points of a search, counted without the networks before any is drawn.

A call of any network counts as one: of the model, of a guider, smaller or not, and of a perturbed copy. Sampler and
guidance are the real ones, so that intervals, windows, and negatives that are left out in some steps are counted as
they come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_guide.data import Prompts
from lightning_guide.denoiser import Denoiser, DerivedDenoiser
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.search.config import SearchObjective
from lightning_guide.search.scores import Scores
from lightning_guide.search.space import UNGUIDED, Point, Space
from lightning_guide.seeds import SampleSeeds

__all__ = ["CALLS", "CallBudget", "count_calls"]


CALLS = SearchObjective("nfe")
"""Network calls per sample, as every search reports them."""


class _Placeholder(DerivedDenoiser):
    """D = x / 2 in the shapes of a model, at no cost."""

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        self.model = model

    @property
    def underlying(self) -> Denoiser:
        return self.model

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        return x / 2


class _Placeholders:
    """Placeholders for the model under evaluation and for all snapshots."""

    prompts: Prompts | None = None

    def __init__(self, model: Denoiser) -> None:
        self.main, self.other = _Placeholder(model), _Placeholder(model)

    def snapshot(self, *, run: str | None, images: int | float | str, sigma_rel: float) -> Denoiser:
        return self.other


def count_calls(evaluation: Evaluation, model: Denoiser) -> int | None:
    """Return the network calls of one sample of `evaluation`, with placeholders for the networks.

    None if it cannot be known without the networks: the guidance changes modules within them, say.
    """
    try:
        denoiser = evaluation.resolve(_Placeholders(model))
        condition = torch.zeros(1, dtype=torch.long) if denoiser.num_classes else None
        return evaluation.sampler.sample(denoiser, seeds=SampleSeeds(0, [0]), condition=condition).evaluations
    except Exception:  # whatever a part of a network lacks here; drawn samples are checked as well
        return None


@dataclass(frozen=True)
class CallBudget:
    """Network calls per sample that a point may cost.

    Attributes:
        limit: the most that are allowed.
        costs: the points within it, and UNGUIDED if that is, with their cost; None if only samples can tell.
    """

    limit: int
    costs: Mapping[Point, int | None]

    @classmethod
    def count(cls, space: Space, build: Callable[[Point], Evaluation], model: Denoiser, *, limit: int) -> CallBudget:
        """Count the calls of all points of `space`, whose evaluations `build` makes for `model`.

        Raises:
            ValueError: if no guided point is within the limit: with the cheapest.
        """
        found: dict[Point, int | None] = {}
        for point in (UNGUIDED, *space.points):
            try:
                found[point] = count_calls(build(point), model)
            except ValueError:  # the search says why it cannot be drawn
                found[point] = None
        kept = {point: cost for point, cost in found.items() if cost is None or cost <= limit}
        if not kept.keys() - {UNGUIDED}:
            known = {point: cost for point, cost in found.items() if point != UNGUIDED and cost is not None}
            least = min(known, key=lambda point: known[point])
            raise ValueError(
                f"no point of the search costs at most {limit} network calls per sample; the cheapest, "
                f"{space.name(least)}, costs {known[least]}"
            )
        return cls(limit, kept)

    def check(self, scores: Scores) -> None:
        """Refuse a point whose samples cost more than was counted: where samples decide, as in adaptive guidance.

        Raises:
            ValueError: with its cost.
        """
        if (cost := scores.values[CALLS.metric]) > self.limit:
            raise ValueError(f"it costs {cost:g} network calls per sample, more than {self.limit}")

    def by_price(self, ranked: Sequence[Point]) -> list[list[Point]]:
        """Return `ranked`, and the same with the points within a half and a quarter of the limit in front."""
        rankings = [list(ranked)]
        for part in (2, 4):
            cheap = [point for point in ranked if (self.costs.get(point) or self.limit) <= self.limit / part]
            rankings.append([*cheap, *(point for point in ranked if point not in cheap)])
        return rankings
