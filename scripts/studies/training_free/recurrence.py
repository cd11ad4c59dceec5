"""Recurrence (time travel) against more steps at equal cost (experiment E5).

    python -m scripts.studies.training_free.recurrence --out runs/training_free/recurrence

Gaussian mixtures with a quadratic loss: the guided distribution p_0 exp(-loss) is exact, and samples are compared with
it by the KL divergence of their mode weights and the sliced Wasserstein distance to exact draws. Each method runs with
1, 2 and 4 repetitions of every step, and without repetitions in 2 and 4 times as many steps; the rate is tuned for each
of these on other mixtures, with the same number of trials. The cosine of successive gradients is recorded as well. The
identities between methods are tested in tests/test_guidance_training_free_reductions.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance.training_free import (
    DPS,
    MPGD,
    TFG,
    AdamDPS,
    EnergyGuidance,
    LossGuidedDiffusion,
    UniversalGuidance,
)
from lightning_guide.guidance.training_free.local_loss import LocalLoss
from lightning_guide.guidance.training_free.schedules import PowerLaw
from lightning_guide.guidance.training_free.step_rules import ConstantStep
from lightning_guide.guidance.training_free.updates import Displace, ThroughDenoiser, Update
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import Energy, SquaredDistance
from lightning_guide.samplers import DDIM, Euler, Sampler, TimeTravel
from lightning_guide.seeds import SampleSeeds
from scripts.lib.command_line import run_script
from scripts.lib.mixtures import Problem, sliced_distance
from scripts.lib.results import write
from scripts.lib.seed_summary import summarize

Make = Callable[[Energy, float, Denoiser], EnergyGuidance]
METHODS: dict[str, Make] = {
    "DPS": lambda loss, rate, positive: DPS(loss, 0.1 * rate, positive=positive),
    "AdamDPS": lambda loss, rate, positive: AdamDPS(loss, 0.5 * rate, positive=positive),
    "MPGD": lambda loss, rate, positive: MPGD(loss, 0.1 * rate, positive=positive),
    "TFG": lambda loss, rate, positive: TFG(loss, 0.5 * rate, 0.15 * rate, 0.1, positive=positive),
    "UG": lambda loss, rate, positive: UniversalGuidance(loss, rate, positive=positive),
    "LGD": lambda loss, rate, positive: LossGuidedDiffusion(loss, rate, draws=10, positive=positive),
}
PLANS = {"1 x N": (1, 1), "2 x N": (1, 2), "4 x N": (1, 4), "1 x 2N": (2, 1), "1 x 4N": (4, 1)}
CURVES = {"repetitions": ("1 x N", "2 x N", "4 x N"), "more steps": ("1 x N", "1 x 2N", "1 x 4N")}
RATES = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0]


def plan(name: str, steps: int) -> Sampler:
    """Build a sampler of DDPM steps on EDM's grid, with the factor of steps and the repetitions of a plan."""
    factor, repeats = PLANS[name]
    return TimeTravel(DDIM(KarrasGrid(factor * steps, sigma_min=0.02, sigma_max=10.0)), repeats)


def drawn(problem: Problem, guide: Denoiser, sampler: Sampler, count: int, seed: int) -> Tensor:
    """Draw samples (count, d)."""
    seeds = SampleSeeds(seed, range(count))
    *_, end = sampler.steps(guide, sampler.initial(guide, seeds).double(), seeds=seeds)
    return end.x


def scores(problem: Problem, x: Tensor, seed: int) -> dict[str, float]:
    """Return KL of the mode weights to the exact ones, and sliced W2 to exact draws; infinite if samples diverged."""
    if not bool(x.isfinite().all()):
        return {"kl": float("inf"), "w2": float("inf")}
    found, exact = problem.modes(x).mean(0), problem.weights()
    kl = float((found * ((found + 1e-12) / exact).log()).sum())
    generator = torch.Generator().manual_seed(seed)
    truth = problem.posterior().sample(len(x), generator)[0].double()
    return {"kl": kl, "w2": sliced_distance(x, truth, generator)}


def study(
    out: str = "runs/training_free/recurrence",
    seeds: int = 10,
    tuning: int = 2,
    count: int = 200,
    steps: int = 16,
    dim: int = 2,
) -> None:
    """Tune, sample, draw the figure and print the table.

    Args:
        out: folder for figure and numbers.
        seeds: number of mixtures for the results.
        tuning: number of other mixtures on which rates are chosen, by the Wasserstein distance.
        count: samples for each mixture.
        steps: N.
        dim: dimension.
    """
    torch.set_num_threads(1)
    results: dict[str, Any] = {"methods": {}, "cosines": {}}
    tuned_on = range(1000, 1000 + tuning)
    problems = {seed: Problem.draw(seed, dim=dim, T=0.5 * dim**0.5) for seed in [*range(seeds), *tuned_on]}
    plain = {
        name: summarize([run(problems[seed], "none", 0.0, name, steps, count, seed) for seed in range(seeds)])
        for name in PLANS
    }
    results["methods"]["unguided"] = plain
    for method in METHODS:
        results["methods"][method] = {}
        for name in PLANS:
            trials = {
                rate: sum(run(problems[seed], method, rate, name, steps, count, seed)["w2"] for seed in tuned_on)
                for rate in RATES
            }
            rate = min(trials, key=lambda each: trials[each])
            summary = summarize([run(problems[s], method, rate, name, steps, count, s) for s in range(seeds)])
            results["methods"][method][name] = {"rate": rate, **summary}
            kl, w2 = summary["kl"], summary["w2"]
            print(
                f"{method:8} {name:7} rate {rate:5g}  KL {kl['mean']:.4f} +- {kl['half_width']:.4f}"
                f"  W2 {w2['mean']:.3f} +- {w2['half_width']:.3f}",
                flush=True,
            )
    for seed in range(seeds):
        for key, value in cosines(problems[seed], count, seed):
            results["cosines"].setdefault(key, []).append(value)
    results["cosines"] = {key: summarize([{"cosine": v} for v in each]) for key, each in results["cosines"].items()}
    path = write(out, "recurrence", results)
    figure(results["methods"]).savefig(path.with_suffix(".png"), dpi=130)


def run(problem: Problem, method: str, rate: float, name: str, steps: int, count: int, seed: int) -> dict[str, float]:
    """Return the scores of one method on one mixture."""
    loss, prior = SquaredDistance(problem.target, problem.T), problem.prior()
    guide = prior if method == "none" else METHODS[method](loss, rate, prior)
    return scores(problem, drawn(problem, guide, plan(name, steps), count, seed), seed)


class Recording(Update):
    """Update through the denoiser that records its gradients."""

    through_denoiser = True

    def __init__(self, rate: float) -> None:
        self.inner = ThroughDenoiser(ConstantStep(rate, schedule=PowerLaw(scale=1, scale_next=1)))
        self.seen: list[Tensor] = []

    def start(self) -> Displace:
        inner = self.inner.start()

        def displace(local: LocalLoss) -> Tensor:
            delta = inner(local)
            self.seen.append(delta)
            return delta

        return displace


def cosines(problem: Problem, count: int, seed: int) -> Iterator[tuple[str, float]]:
    """Yield the mean cosine of successive DPS gradients in thirds of 64 deterministic and stochastic steps, by rate."""
    grid = KarrasGrid(64, sigma_min=0.02, sigma_max=10.0)
    for rate in (0.03, 0.3):
        for sampler in (Euler(grid), DDIM(grid)):
            update = Recording(rate)
            loss = SquaredDistance(problem.target, problem.T)
            drawn(problem, EnergyGuidance(loss, [update], positive=problem.prior()), sampler, count, seed)
            pairs = zip(update.seen, update.seen[1:], strict=False)
            similar = torch.stack([torch.cosine_similarity(a, b, dim=1).mean() for a, b in pairs])
            for part, third in enumerate(similar.tensor_split(3)):
                yield f"rate {rate:g}, {type(sampler).__name__}, third {part + 1}", float(third.mean())


def figure(methods: dict[str, Any]) -> plt.Figure:
    """Draw both scores over the cost, with repetitions and with more steps instead."""
    names = [name for name in methods if name != "unguided"]
    fig, axes = plt.subplots(2, len(names), figsize=(2.6 * len(names), 5), sharey="row", layout="constrained")
    for column, name in zip(axes.T, names, strict=True):
        for axis, key in zip(column, ("kl", "w2"), strict=True):
            for label, plans in CURVES.items():
                values = [methods[name][each][key] for each in plans]
                axis.errorbar(
                    [1, 2, 4], [v["mean"] for v in values], [v["half_width"] for v in values], marker="o", label=label
                )
            axis.set(yscale="log", xscale="log", xticks=[1, 2, 4], xticklabels=["1", "2", "4"])
            axis.minorticks_off()
        column[0].set_title(name)
        column[1].set_xlabel("cost / N")
    axes[0, 0].set_ylabel("KL of mode weights")
    axes[1, 0].set_ylabel("sliced W2")
    axes[0, 0].legend(fontsize=8)
    return fig


if __name__ == "__main__":
    run_script(study)
