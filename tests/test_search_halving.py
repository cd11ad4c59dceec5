"""The tuner on scores with a known optimum: it finds it, keeps to its budget, and says what failed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml

from lightning_guide.search.config import SearchObjective
from lightning_guide.search.halving import Halving
from lightning_guide.search.race import Race
from lightning_guide.search.scores import ScoreBlock, Scorer, Scores
from lightning_guide.search.space import UNGUIDED, Axis, Point, Space
from lightning_guide.search.tune_report import pareto, summary_sentence, write_guidances
from lightning_guide.seeds import mix

AXES = [Axis(name, name, tuple(range(6))) for name in ("a", "b")] + [Axis("c", "c", ("x", "y", "z"))]
SPACE = Space({"a": 0, "b": 0, "c": 0}, AXES)
BEST = (4, 1, 2)


class Synthetic(Scorer):
    """Means of (value at the point + noise of the seed, the same everywhere, + noise of its own) over the samples."""

    size = 10

    def __init__(
        self, *, common: float = 1.0, own: float = 0.5, unguided: float = 3.0, bad: Sequence[Point] = ()
    ) -> None:
        self.common, self.own, self.unguided, self.bad = common, own, unguided, bad
        self.samples = 0
        self.seen: dict[Point, set[ScoreBlock]] = {}

    def truth(self, point: Point) -> float:
        """1 at BEST, higher elsewhere."""
        if point == UNGUIDED:
            return self.unguided
        a, b, c = (x - y for x, y in zip(point, BEST, strict=True))
        return 1 + 0.1 * (a * a + b * b) + 0.3 * (c != 0)

    def drawn(self, point: Point) -> set[ScoreBlock]:
        return self.seen.get(point, set())

    def draw(self, point: Point, blocks: Sequence[ScoreBlock]) -> None:
        if point in self.bad:
            raise ValueError("no such guider")
        self.samples += self.size * len(set(blocks) - self.drawn(point))
        self.seen.setdefault(point, set()).update(blocks)

    def scores(self, point: Point, blocks: Sequence[ScoreBlock], *, interval: bool = True) -> Scores:
        assert set(blocks) <= self.drawn(point)
        low = [self.truth(point) + self._noise(point, block) for block in blocks]
        without = [(sum(low) - each) / (len(low) - 1) for each in low] if interval and len(low) > 1 else []
        mean = sum(low) / len(low)
        values = {"low": mean, "high": -mean, "first": float(sum(point[:1]))}
        return Scores(values, [{"low": x, "high": -x, "first": values["first"]} for x in without])

    def _noise(self, point: Point, block: ScoreBlock) -> float:
        def normal(*parts: int | str) -> float:
            return float(torch.randn((), generator=torch.Generator().manual_seed(mix(*parts)), dtype=torch.float64))

        common = self.common * normal(*block, "common")
        return common + self.own * normal(*block, *point) / math.sqrt(self.size)


LOW = SearchObjective("low")


def test_the_optimum_is_found_within_the_budget() -> None:
    losses = []
    for seed in range(6):
        scorer = Synthetic()
        halving = Halving(SPACE, scorer, [LOW], budget=2000, seed=seed)
        found = halving.run()
        assert scorer.samples == found.samples <= 2000
        assert all(a.blocks < b.blocks for a, b in zip(found.rounds, found.rounds[1:], strict=False))
        fresh = {block for point in found.raced.fresh for block in scorer.drawn(point) if block.seed == seed + 1}
        assert len(fresh) == found.raced.blocks >= 4 and len(found.raced.fresh) == 3
        assert set(found.raced.fresh) < set(found.raced.heat) and len(found.raced.heat) == 5
        searched = [block for p in found.rounds[0].changes if p not in found.raced.heat for block in scorer.drawn(p)]
        assert {block.seed for block in searched} == {seed}
        losses.append(scorer.truth(found.raced.winners["low"]))
    # the grid at these samples each would cost 108 * 200; a point drawn at random is 1.9 on average
    assert sum(losses) / 6 < 1.06 and max(losses) <= 1.2


def test_noise_that_all_points_share_does_no_harm_and_neighbors_help() -> None:
    """Noise a hundred times the range of the truth, that a comparison between different seeds could not see through."""
    for seed in range(2):
        found = [Halving(SPACE, Synthetic(common=c), [LOW], budget=1500, seed=seed).run() for c in (0.0, 100.0)]
        assert found[0].raced.winners == found[1].raced.winners
        assert Synthetic().truth(found[1].raced.winners["low"]) <= 1.4


class Aligned(Synthetic):
    """Each block deviates in a direction, and points score by how they deviate from the truth in this direction, too.

    The score is |bias(point) + noise(block)|^2, as of a distance to a distribution: paired differences keep the product
    2 bias noise, which is alike for neighbors, so that only other blocks can tell.
    """

    def scores(self, point: Point, blocks: Sequence[ScoreBlock], *, interval: bool = True) -> Scores:
        assert set(blocks) <= self.drawn(point)
        bias = torch.tensor([0.05 * (x - y) for x, y in zip(point or (0, 5, 0), BEST, strict=True)])
        noise = [0.15 * torch.randn(3, generator=torch.Generator().manual_seed(mix(*block))) for block in blocks]
        return Scores({"low": float((bias + torch.stack(noise).mean(0)).square().sum())})


def test_points_on_different_blocks_tell_each_other_about_noise_they_would_share() -> None:
    losses = []
    for seed in range(6):
        point = Halving(SPACE, Aligned(), [LOW], budget=3000, seed=seed).run().raced.winners["low"] or (0, 5, 0)
        losses.append(sum((0.05 * (x - y)) ** 2 for x, y in zip(point, BEST, strict=True)))
    everywhere = [sum((0.05 * (x - y)) ** 2 for x, y in zip(p, BEST, strict=True)) for p in SPACE.points]
    # 0.15 of it; 0.42 if all points of a round share their blocks
    assert sum(losses) / 6 < 0.25 * sum(everywhere) / len(everywhere)


def test_a_race_ends_with_the_two_best_on_twice_the_samples() -> None:
    order = [(0, 5, 0), (3, 1, 2), (4, 1, 2), (0, 4, 1), (5, 5, 0)]
    scorer = Synthetic()
    race = Race(scorer, [LOW], blocks=160, seed=1)
    raced = race.run(order)
    assert list(raced.heat) == [UNGUIDED, *order[:4]] and set(raced.fresh) == {UNGUIDED, (3, 1, 2), BEST}
    assert raced.winners == {"low": BEST}
    assert sum(raced.drawn.values()) * scorer.size == scorer.samples == race.cost * scorer.size
    assert {point: len(scorer.drawn(point)) for point in raced.heat} == {
        point: 40 if point in raced.fresh else 20 for point in raced.heat
    }


def test_a_race_on_a_small_budget() -> None:
    races = [Race(Synthetic(), [LOW], blocks=blocks, seed=1) for blocks in (160, 32, 31, 11)]
    assert [(race.candidates, race.first, race.last, race.enough) for race in races] == [
        (4, 20, 40, True), (4, 4, 8, True), (2, 10, 10, True), (2, 3, 3, False)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no candidate could be scored; the last one: no such guider"):
        Race(Synthetic(bad=SPACE.points), [LOW], blocks=280, seed=1).run(SPACE.points)


def test_it_is_the_same_when_it_is_begun_again() -> None:
    scorer = Synthetic()
    first = Halving(SPACE, scorer, [LOW], budget=2000).run()
    drawn = scorer.samples
    again = Halving(SPACE, scorer, [LOW], budget=2000).run()
    assert scorer.samples == drawn and again == first


def test_no_guidance_wins_where_it_is_better() -> None:
    scorer = Synthetic(unguided=0.5)
    found = Halving(SPACE, scorer, [LOW], budget=1500).run()
    assert found.raced.winners["low"] == UNGUIDED
    said = summary_sentence(SPACE, found, LOW, size=10)
    assert said.startswith("low: unguided, ") and said.endswith("(significant at 95 %)")


def test_each_metric_has_its_winner() -> None:
    objectives = [LOW, SearchObjective("first", lowest=False)]
    found = Halving(SPACE, Synthetic(unguided=9.0), objectives, budget=4000).run()
    assert Synthetic().truth(found.raced.winners["low"]) <= 1.2 and found.raced.winners["first"][0] == 5
    high = Halving(SPACE, Synthetic(), [SearchObjective("high", lowest=False)], budget=2000).run()
    assert Synthetic().truth(high.raced.winners["high"]) <= 1.2


def test_what_is_handed_over_is_the_whole_point(tmp_path: Path) -> None:
    found = Halving(SPACE, Synthetic(), [LOW], budget=2000).run()
    write_guidances(SPACE, found, [LOW], tmp_path, size=10, model={"images": "1/8"}, seed=2)
    settings = yaml.safe_load((tmp_path / "low.yaml").read_text())["model"]["init_args"]
    assert settings["images"] == "1/8" and settings["guidances"] is None
    winner = found.raced.winners["low"]
    plain, tuned = (SPACE.evaluation(point) | {"seed": 2} for point in (UNGUIDED, winner))
    assert settings["evaluations"] == {"unguided": plain, "tuned_low": tuned} and tuned["a"] == winner[0]


def test_a_metric_may_have_a_stroke_in_its_name(tmp_path: Path) -> None:
    class Named(Synthetic):
        def scores(self, point: Point, blocks: Sequence[ScoreBlock], *, interval: bool = True) -> Scores:
            found = super().scores(point, blocks, interval=interval)
            return Scores({"a/low": found.values["low"]}, [{"a/low": each["low"]} for each in found.without])

    found = Halving(SPACE, Named(), [SearchObjective("a/low")], budget=400).run()
    write_guidances(SPACE, found, [SearchObjective("a/low")], tmp_path, size=10, model={}, seed=2)
    assert "tuned_a/low" in (tmp_path / "a_low.yaml").read_text()


def test_points_that_fail_are_noted_and_the_rest_goes_on() -> None:
    scorer = Synthetic(bad=[point for point in SPACE.points if point[2] == 2])
    found = Halving(SPACE, scorer, [LOW], budget=2000).run()
    assert found.raced.winners["low"][2] != 2 and scorer.truth(found.raced.winners["low"]) <= 1.6
    assert found.failed and all(point[2] == 2 and why == "no such guider" for point, why in found.failed.items())
    with pytest.raises(ValueError, match="no point could be scored; .*: no such guider"):
        Halving(SPACE, Synthetic(bad=SPACE.points), [LOW], budget=2000).run()


def test_a_point_whose_metric_is_no_number_does_not_take_the_place_of_one_that_has_it() -> None:
    class Undefined(Synthetic):
        """No number anywhere but at one point."""

        def scores(self, point: Point, blocks: Sequence[ScoreBlock], *, interval: bool = True) -> Scores:
            found = super().scores(point, blocks, interval=interval)
            return found if point in (UNGUIDED, (3,)) else Scores({"low": math.nan}, [{"low": math.nan}] * len(blocks))

    space = Space({"a": 0}, [Axis("a", "a", (0, 1, 2, 3))])
    scorer = Undefined()
    scorer.truth = lambda point: 1.0 if point else 3.0  # type: ignore[method-assign]
    assert Halving(space, scorer, [LOW], budget=320).run().raced.winners == {"low": (3,)}


def test_what_cannot_be_searched_is_said() -> None:
    with pytest.raises(ValueError, match="a budget of 100 images is too small: .* need at least 240"):
        Halving(SPACE, Synthetic(), [LOW], budget=100)
    Halving(SPACE, Synthetic(), [LOW], budget=240)
    with pytest.raises(ValueError, match="the metric 'fd' is not reported; there are: low, high, first"):
        Halving(SPACE, Synthetic(), [SearchObjective("fd")], budget=2000).run()


def test_the_pareto_set_holds_what_nothing_beats() -> None:
    values = [(1, 0.5), (2, 0.7), (2, 0.6), (3, 0.7)]
    points = {(i,): Scores({"fd": fd, "recall": recall}) for i, (fd, recall) in enumerate(values)}
    assert pareto(points, [SearchObjective("fd"), SearchObjective("recall", lowest=False)]) == [(0,), (1,)]
