"""Beam search of TFG: finds the best reachable setting, evaluates none twice, and tunes a real TFG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance.training_free import TFG
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import SquaredDistance
from lightning_guide.samplers import DDIM
from scripts.studies.training_free.beam_search import FACTORS, START, Candidate, Scores, beam_search
from tests.energies import draw_samples, mixture


def each(score: Callable[[Candidate], float]) -> Scores:
    """Return scores of points one after the other."""
    return lambda points: [score(point) for point in points]


def hill(point: Candidate) -> float:
    """Return a score that is highest at rho = 2, mu = 0.5, gamma = 0.1."""
    return -sum(abs(math.log(point[name] / at)) for name, at in (("rho", 2.0), ("mu", 0.5), ("gamma", 0.1)))


def test_the_search_finds_the_maximum() -> None:
    found = beam_search(each(hill), start=START, factors=FACTORS)
    assert found.best == pytest.approx({"rho": 2.0, "mu": 0.5, "gamma": 0.1})
    points = [tuple(point.values()) for point, _ in found.trials]
    assert len(points) == len(set(points)) <= 1 + 3 + 9 * 6
    assert all(score == hill(point) for point, score in found.trials)
    # 3 doublings, 1 doubling and 2 tenfolds are six rounds; the seventh changes the rest of the beam at most
    assert found.rounds[0] == [dict(START)] and 7 <= len(found.rounds) <= 8
    assert all(len(beam) == 3 for beam in found.rounds[1:])
    scores = [hill(beam[0]) for beam in found.rounds]
    assert scores == sorted(scores)


def test_the_search_ends_without_improvement_or_after_its_rounds() -> None:
    flat = beam_search(each(lambda point: -point["rho"]), start={"rho": 1.0}, factors={"rho": 2.0}, beam=1)
    assert flat.best == {"rho": 1.0} and len(flat.trials) == 2
    rising = beam_search(
        each(lambda point: point["rho"]), start={"rho": 1.0, "mu": 3.0}, factors={"rho": 2.0}, rounds=4
    )
    assert rising.best == {"rho": 16.0, "mu": 3.0}


def test_a_beam_of_one_is_greedy_and_a_wider_one_crosses_a_dip() -> None:
    """Doubling rho once is worse, twice is best: only a wider beam continues from the worse point."""
    values = {1.0: 0.0, 2.0: -1.0, 4.0: 5.0}

    def dip(point: Candidate) -> float:
        return values.get(point["rho"], -9.0) - abs(point["mu"] - 1)

    factors = {"rho": 2.0, "mu": 2.0}
    start = {"rho": 1.0, "mu": 1.0}
    assert beam_search(each(dip), start=start, factors=factors, beam=1).best == start
    assert beam_search(each(dip), start=start, factors=factors, beam=3).best == {"rho": 4.0, "mu": 1.0}


def test_a_score_of_nan_ranks_last() -> None:
    score = each(lambda point: math.nan if point["a"] > 2 else point["a"])
    found = beam_search(score, start={"a": 1.0}, factors={"a": 2.0})
    assert found.best == {"a": 2.0}


def test_the_search_tunes_tfg_toward_the_exact_posterior() -> None:
    """The search gets closer to the exact mean of p_0 exp(-loss) than its start."""
    prior = mixture()
    loss = SquaredDistance([-0.5, 0.4, 0.6], 0.7)
    sampler = DDIM(KarrasGrid(5, sigma_min=0.1, sigma_max=5.0), eta=1.0)
    exact_mean = posterior_mean(prior, [-0.5, 0.4, 0.6], 0.7)

    def score(point: Candidate) -> float:
        tfg = TFG(loss, point["rho"], point["mu"], point["gamma"], iterations=1, positive=prior)
        return -float((draw_samples(tfg, sampler, 24).mean(0) - exact_mean).norm())

    start = {"rho": 0.01, "mu": 0.01, "gamma": 0.001}
    found = beam_search(each(score), start=start, beam=2, rounds=3)
    assert found.best != start and score(found.best) > 0.8 * score(start)


def posterior_mean(prior: GaussianMixture, target: list[float], temperature: float) -> Tensor:
    """Return E[x] under p_0(x) N(x; target, T^2 I), by importance weights of many exact draws."""
    x = prior.sample(20_000, torch.Generator().manual_seed(0))[0].double()
    log_weight = -(x - torch.tensor(target, dtype=torch.float64)).square().sum(1) / (2 * temperature**2)
    return (log_weight.softmax(0)[:, None] * x).sum(0)


def test_all_points_of_a_round_are_scored_in_one_call() -> None:
    """A scorer may then evaluate the points in parallel."""
    rounds: list[int] = []

    def scores(points: Sequence[Candidate]) -> list[float]:
        rounds.append(len(points))
        return [hill(point) for point in points]

    beam_search(scores, rounds=2)
    assert rounds[:2] == [1, 3] and len(rounds) == 3


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="factors of the numbers rho"):
        beam_search(each(hill), start={"rho": 1.0}, factors={"mu": 2.0})
    with pytest.raises(ValueError, match="beam and rounds >= 1"):
        beam_search(each(hill), beam=0)
