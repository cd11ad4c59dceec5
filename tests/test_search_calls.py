"""A budget of network calls: counted before anything is drawn, kept by the tuner, with the front of what calls buy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lightning_guide.distributions.gaussian_mixture import gaussian
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.guidance import Autoguidance, Interval, PerturbedAttentionGuidance, Snapshot
from lightning_guide.guidance.combinations import ReusedDifference
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers import PLMS, DPMSolver2M, Euler, Heun, Sampler
from lightning_guide.search.calls import CallBudget, count_calls
from lightning_guide.search.config import SearchObjective
from lightning_guide.search.figures import draw_front
from lightning_guide.search.halving import Halving
from lightning_guide.search.scores import ScoreBlock, Scores
from lightning_guide.search.space import UNGUIDED, Axis, Point, Space
from lightning_guide.search.tune_report import all_results, price_front
from tests.searches import search
from tests.test_search_halving import Synthetic

MODEL = gaussian([0.0, 0.0], 0.25)
LOW = SearchObjective("low")
SPACE = Space({"a": 0, "steps": 0}, [Axis("a", "a", tuple(range(6))), Axis("steps", "steps", (5, 10, 20, 40, 80))])


def cost(point: Point) -> int:
    """Twice the steps; no guidance costs 100."""
    return 2 * SPACE.values(point)["steps"] if point else 100


class Priced(Synthetic):
    """More steps are better, with a at 4."""

    def truth(self, point: Point) -> float:
        return 1 + 0.1 * (point[0] - 4) ** 2 + 4 / SPACE.values(point)["steps"] if point else self.unguided

    def scores(self, point: Point, blocks: Sequence[ScoreBlock], *, interval: bool = True) -> Scores:
        found = super().scores(point, blocks, interval=interval)
        nfe = {"nfe": float(cost(point))}
        return Scores({**found.values, **nfe}, [{**each, **nfe} for each in found.without])


def budget(limit: int) -> CallBudget:
    return CallBudget(limit, {point: cost(point) for point in (UNGUIDED, *SPACE.points) if cost(point) <= limit})


def test_calls_are_those_of_real_samples() -> None:
    def counted(sampler: Sampler, guidance: Any = None) -> int | None:
        return count_calls(Evaluation(guidance=guidance, sampler=sampler), MODEL)

    def guided(weight: Any = 2.0, **settings: Any) -> Autoguidance:
        return Autoguidance(Snapshot("1/4"), weight, **settings)

    assert counted(Heun(32), guided()) == 126 and counted(DPMSolver2M(21), guided()) == 42
    assert counted(DPMSolver2M(28), guided(combination=ReusedDifference(2))) == 42
    assert counted(Euler(7)) == 7 and counted(Euler(7), guided(1.0)) == 7
    grid = KarrasGrid(6, sigma_min=0.1, sigma_max=5.0)
    levels = grid.sigmas().tolist()
    assert counted(Euler(grid), guided(Interval(2.0, levels[3], levels[1]))) == 8
    plms = counted(PLMS(9), guided())
    assert plms is not None and plms >= 18
    assert counted(Euler(3), PerturbedAttentionGuidance(2.0)) is None  # a Gaussian has no attention


def test_only_what_the_budget_allows_is_tried_and_cheap_points_race() -> None:
    scorer = Priced()
    found = Halving(SPACE, scorer, [LOW], budget=1500, calls=budget(42)).run()
    assert {point for point in scorer.seen if point} <= budget(42).costs.keys()
    assert SPACE.values(found.raced.winners["low"]) == {"a": 4, "steps": 20}
    assert sorted(cost(point) for point in found.raced.heat if point) == [10, 10, 20, 20, 40, 40]


def test_no_guidance_is_the_baseline_but_cannot_win_beyond_the_budget() -> None:
    found = Halving(SPACE, Priced(unguided=0.1), [LOW], budget=800, calls=budget(42)).run()
    assert found.raced.winners["low"] != UNGUIDED and UNGUIDED in found.raced.fresh
    found = Halving(SPACE, Priced(unguided=0.1), [LOW], budget=800, calls=budget(120)).run()
    assert found.raced.winners["low"] == UNGUIDED


def test_points_that_cost_more_than_was_counted_fail() -> None:
    unknown = CallBudget(42, dict.fromkeys(SPACE.points))
    found = Halving(SPACE, Priced(), [LOW], budget=800, calls=unknown).run()
    assert cost(found.raced.winners["low"]) <= 42
    assert "it costs 160 network calls per sample, more than 42" in found.failed.values()


def test_front_of_quality_and_calls(tmp_path: Path) -> None:
    found = Halving(SPACE, Priced(), [LOW], budget=1500, calls=budget(42)).run()
    front = price_front(found.raced.heat, [LOW], budget(42))
    costs, values = ([f(point) for point in front] for f in (cost, lambda p: found.raced.heat[p].values["low"]))
    assert costs == sorted(set(costs)) and values == sorted(values, reverse=True) and len(front) > 1
    content = all_results(SPACE, found, [LOW], size=10, calls=budget(42))
    assert [row["values"]["nfe"] for row in content["pareto"]] == costs
    assert content["calls"]["a=0 steps=20"] == 40 and "a=0 steps=40" not in content["calls"]
    draw_front(SPACE, found, [LOW], budget(42), tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 5000


def test_a_budget_that_no_point_meets_is_refused_with_the_cheapest() -> None:
    def build(point: Point) -> Evaluation:
        return Evaluation(guidance=Autoguidance(Snapshot("1/4"), 2.0), sampler=Euler(SPACE.values(point)["steps"]))

    expected = "at most 9 network calls per sample; the cheapest, a=0 steps=5, costs 10"
    with pytest.raises(ValueError, match=expected):
        CallBudget.count(Space(SPACE.base, SPACE.axes), lambda point: build(point or (0, 4)), MODEL, limit=9)


def test_the_command(search_folder: Path) -> None:
    steps = {"path": "sampler.init_args.grid.init_args.num_steps", "values": [2, 3, 4]}
    weight = {"path": "guidance.init_args.weight", "values": [1.5, 2.0]}
    changes = {"axes": {"steps": steps, "weight": weight}, "objectives": {"fd": "lowest"}, "block": 4}
    words = ["--budget", "100", "--calls"]
    out = search(search_folder, "tune", "calls", *words, "6", changes=changes)
    content = json.loads((out / "tune.json").read_text())
    assert content["search"]["calls"] == 6 and (out / "front.png").stat().st_size > 5000
    assert {name: n for name, n in content["calls"].items() if name != "unguided"} == {
        f"steps={n} weight={w}": 2 * n for n in (2, 3) for w in (1.5, 2.0)
    }
    assert all(row["values"]["nfe"] <= 6 for row in content["pareto"]) and "steps=4" not in str(content["winners"])
    with pytest.raises(
        SystemExit, match="no point of the search costs at most 3 network calls per sample; the cheapest"
    ):
        search(search_folder, "tune", "none", *words, "3", changes=changes)
