"""Samples of posterior methods against the exact posterior of mixtures under linear measurements.

    python -m scripts.studies.posterior.mixtures --out runs/posterior

Random mixtures, one measurement of a random truth for each seed, and as many network calls for every method. Scores:
the sliced Wasserstein distance to exact draws, the share of exact draws in the central 90 % interval of the samples
along random directions (0.9 if the uncertainty is right), and the share of diverged samples. DPS, MPGD and DiffPIR are
tuned on other seeds; the others have no rate.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance import DAPS, DDNM, DDRM, DPS, MMPS, MPGD, TMPD, DiffPIR, PiGDM, RePaint
from lightning_guide.inference import is_diverged
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import Matrix, Measurement
from lightning_guide.samplers import DDIM, Euler, Sampler, TimeTravel
from lightning_guide.seeds import SampleSeeds
from scripts.lib.command_line import run_script
from scripts.lib.mixtures import double, given_measurement, sliced_distance
from scripts.lib.results import write
from scripts.lib.seed_summary import show, summarize

Scores = dict[str, float]


@dataclass(frozen=True)
class Case:
    """A prior, a measurement of one of its points or of several, and the exact posterior if it is known."""

    prior: Denoiser
    measurement: Measurement
    posterior: GaussianMixture | None = None

    @property
    def exact(self) -> GaussianMixture:
        """The exact posterior."""
        assert self.posterior is not None
        return self.posterior


def _mask(dim: int, generator: torch.Generator) -> Tensor:
    return torch.eye(dim, dtype=double)[: dim // 2]


def _means(dim: int, generator: torch.Generator) -> Tensor:
    return torch.eye(dim, dtype=double).reshape(dim // 2, 2, dim).mean(1)


def _projections(dim: int, generator: torch.Generator) -> Tensor:
    return torch.randn(dim // 4, dim, generator=generator, dtype=double) / math.sqrt(dim)


PROBLEMS: dict[str, tuple[int, float, Callable[[int, torch.Generator], Tensor]]] = {
    "2 d, one number": (2, 0.1, _mask),
    "16 d, half": (16, 0.1, _mask),
    "16 d, half, noisy": (16, 0.5, _mask),
    "16 d, means of pairs": (16, 0.1, _means),
    "16 d, 4 projections": (16, 0.1, _projections),
}
"""Name -> dimension, noise, A."""


def draw_case(name: str, seed: int) -> Case:
    """Draw 4 components with standard normal means and random covariances of trace d / 8, and a measurement."""
    dim, noise, operator = PROBLEMS[name]
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(4, dim, generator=generator, dtype=double)
    roots = torch.randn(4, dim, dim, generator=generator, dtype=double)
    covariances = roots @ roots.mT
    covariances *= dim / 8 / covariances.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    std = float((means.var(0, correction=0).mean() + 1 / 8).sqrt())
    prior = GaussianMixture(means, covariances, sigma_data=std)
    A = operator(dim, generator)
    truth = prior.sample(1, generator)[0].double()
    y = truth[0] @ A.T + noise * torch.randn(len(A), generator=generator, dtype=double)
    measurement = Measurement(Matrix(A), observed=y, noise=noise)
    return Case(prior, measurement, given_measurement(prior, A, y, noise))


def _grid(steps: int) -> KarrasGrid:
    return KarrasGrid(steps, sigma_min=0.02, sigma_max=20.0)


Make = Callable[[Case, float], Denoiser]
Plan = tuple[Make, Callable[[int], Sampler], list[float]]
"""A method by its rate, its sampler by the number of network calls, and the rates to be tried."""


def _euler(calls: int) -> Sampler:
    return Euler(_grid(calls))


def _ddim(calls: int) -> Sampler:
    return DDIM(_grid(calls))


METHODS: dict[str, Plan] = {
    "exact denoiser, Euler": (lambda c, _: c.exact, _euler, []),
    "exact denoiser, DDIM": (lambda c, _: c.exact, _ddim, []),
    "DPS": (lambda c, rate: DPS(c.measurement, rate, positive=c.prior), _ddim, [0.1, 0.3, 1.0, 3.0]),
    "MPGD": (lambda c, rate: MPGD(c.measurement, rate, positive=c.prior), _ddim, [0.1, 0.3, 1.0, 3.0]),
    "PiGDM, Euler": (lambda c, _: PiGDM(c.measurement, positive=c.prior), _euler, []),
    "PiGDM, DDIM": (lambda c, _: PiGDM(c.measurement, positive=c.prior), _ddim, []),
    "TMPD, Euler": (lambda c, _: TMPD(c.measurement, positive=c.prior), _euler, []),
    "TMPD, DDIM": (lambda c, _: TMPD(c.measurement, positive=c.prior), _ddim, []),
    "MMPS, Euler": (lambda c, _: MMPS(c.measurement, positive=c.prior), _euler, []),
    "MMPS, DDIM": (lambda c, _: MMPS(c.measurement, positive=c.prior), _ddim, []),
    "MMPS, 8 iterations, DDIM": (lambda c, _: MMPS(c.measurement, iterations=8, positive=c.prior), _ddim, []),
    "DDNM": (lambda c, _: DDNM(c.measurement, positive=c.prior), _euler, []),
    "DDRM": (lambda c, _: DDRM(c.measurement, positive=c.prior), _euler, []),
    "DiffPIR": (lambda c, rate: DiffPIR(c.measurement, weight=rate, positive=c.prior), _euler, [0.1, 0.3, 1.0, 3.0]),
    "DiffPIR, zeta 0.3": (
        lambda c, rate: DiffPIR(c.measurement, weight=rate, zeta=0.3, positive=c.prior),
        _euler,
        [0.1, 0.3, 1.0, 3.0],
    ),
    "DAPS, 1 step": (lambda c, _: DAPS(c.measurement, positive=c.prior), _euler, []),
    "DAPS, 5 steps": (
        lambda c, _: DAPS(c.measurement, steps=5, positive=c.prior),
        lambda calls: Euler(_grid(calls // 5)),
        [],
    ),
    "RePaint, 1 time": (lambda c, _: RePaint(c.measurement, positive=c.prior), _ddim, []),
    "RePaint, 5 times": (
        lambda c, _: RePaint(c.measurement, positive=c.prior),
        lambda calls: TimeTravel(DDIM(_grid(calls // 5)), 5),
        [],
    ),
}


def score(case: Case, x: Tensor, seed: int) -> Scores:
    """Return all scores of samples `x` (n, d)."""
    lost = is_diverged(x, case.prior.sigma_data)
    generator = torch.Generator().manual_seed(seed)
    truth = case.exact.sample(len(x), generator)[0].double()
    kept, exact = x[~lost].double(), truth[: int((~lost).sum())]
    if len(kept) < 10:
        return {"distance": math.inf, "coverage": math.nan, "lost": 1.0}
    directions = torch.randn(x.shape[1], 64, generator=generator, dtype=double)
    low, high = (kept @ directions).quantile(torch.tensor([0.05, 0.95], dtype=double), dim=0)
    along = truth @ directions
    coverage = float(((along >= low) & (along <= high)).double().mean())
    return {
        "distance": sliced_distance(kept, exact, generator),
        "coverage": coverage,
        "lost": float(lost.double().mean()),
    }


def run(plan: Plan, case: Case, rate: float, *, seed: int, count: int, calls: int) -> Scores:
    """Sample one method and return its scores."""
    make, sampler, _ = plan
    end = sampler(calls).sample(make(case, rate), seeds=SampleSeeds(seed, range(count)))
    assert abs(end.evaluations - calls) <= 5
    return score(case, end.x, seed)


def measure(problem: str, seeds: int, tuning: int, count: int, calls: int) -> Iterator[tuple[str, list[Scores]]]:
    """Yield the scores of all seeds for each method of a problem."""
    cases = [draw_case(problem, seed) for seed in range(seeds)]
    yield "exact draws", [score(case, case.exact.sample(count, _generator(i))[0], i) for i, case in enumerate(cases)]
    for name, plan in METHODS.items():

        def cost(rate: float, plan: Plan = plan) -> float:
            found = [
                run(plan, draw_case(problem, 1000 + i), rate, seed=1000 + i, count=count, calls=calls)
                for i in range(tuning)
            ]
            return statistics.fmean(each["distance"] for each in found)

        rate = min(plan[2], key=cost) if plan[2] else 0.0
        scores = [run(plan, case, rate, seed=i, count=count, calls=calls) for i, case in enumerate(cases)]
        yield (f"{name} ({rate:g})" if plan[2] else name), scores


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(5000 + seed)


def study(out: str = "runs/posterior", seeds: int = 10, tuning: int = 2, count: int = 200, calls: int = 60) -> None:
    """Measure all methods on all problems and print a table of each.

    Args:
        out: folder for the numbers.
        seeds: mixtures, each with one measurement.
        tuning: other mixtures, on which rates are chosen.
        count: samples of each posterior.
        calls: network calls of each sample.
    """
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for problem in PROBLEMS:
        found = dict(measure(problem, seeds, tuning, count, calls))
        results[problem] = {name: {"summary": summarize(each), "seeds": each} for name, each in found.items()}
        print(f"\n{problem}")
        show({name: each["summary"] for name, each in results[problem].items()}, ["distance", "coverage", "lost"])
        write(out, "mixtures", results)


if __name__ == "__main__":
    run_script(study)
