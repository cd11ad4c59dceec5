"""Posterior methods on images: super-resolution and inpainting by a trained model.

    python -m scripts.studies.posterior.images runs/cifar8 --out runs/posterior

The methods, rates and samplers of `mixtures`, on held-out images, with as many network calls for each. Scores of one
sample for each image: PSNR against the hidden image; misfit, the root mean square of y - A x in units of the noise,
near 1 for samples of the posterior; the share of diverged samples. The linear estimate is that of `Problem.linear`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.evaluation.measurement_fit import fit_of_samples
from lightning_guide.inference import is_diverged
from lightning_guide.objectives import Measurement
from scripts.lib.command_line import run_script
from scripts.lib.problems import SETTINGS, TUNING_SEED, Problem
from scripts.lib.results import write
from scripts.lib.seed_summary import show, summarize
from scripts.studies.posterior.mixtures import METHODS, Case, Plan, Scores

PROBLEMS = ("super-resolution", "inpainting")
STOCHASTIC = (
    *("DPS", "MPGD", "PiGDM, DDIM", "TMPD, DDIM", "MMPS, DDIM"),
    *("DDNM", "DDRM", "DiffPIR", "DAPS, 1 step", "RePaint, 1 time"),
)
"""The better sampler of each method on mixtures."""


def score(problem: Problem, x: Tensor, seed: int) -> Scores:
    """Return the scores of samples `x` (n, C, H, W)."""
    lost = is_diverged(x, problem.setting.positive.sigma_data)
    end = Trajectory(x=x.nan_to_num().clamp(-1, 1), seeds=problem.seeds(seed), sigma=0.0)
    fit = fit_of_samples(_measurement(problem), end)
    return {
        "psnr": float(fit["psnr"].mean()),
        "misfit": float(fit["misfit"].mean().sqrt()),
        "lost": float(lost.double().mean()),
    }


def run(problem: Problem, plan: Plan, rate: float, seed: int, calls: int) -> Scores:
    """Sample one method and return its scores."""
    make, sampler, _ = plan
    guided = make(Case(problem.setting.positive, _measurement(problem)), rate)
    return score(problem, sampler(calls).sample(guided, seeds=problem.seeds(seed)).x, seed)


def measure(problem: Problem, seeds: int, calls: int) -> dict[str, list[Scores]]:
    """Return the scores of all seeds for each method, at the rate of the best PSNR on another seed."""
    found = {"linear estimate": [score(problem, problem.linear(seed), seed) for seed in range(seeds)]}
    for name in STOCHASTIC:
        plan, rate = METHODS[name], 0.0
        if plan[2]:
            tried = {rate: run(problem, plan, rate, TUNING_SEED, calls)["psnr"] for rate in plan[2]}
            rate = max(tried, key=tried.__getitem__)
        scores = [run(problem, plan, rate, seed, calls) for seed in range(seeds)]
        found[f"{name} ({rate:g})" if plan[2] else name] = scores
    return found


def _measurement(problem: Problem) -> Measurement:
    assert isinstance(problem.task.energy, Measurement)
    return problem.task.energy


def study(
    runs: str, out: str = "runs/posterior", data: str = "cifar8", seeds: int = 5, count: int = 8, calls: int = 20
) -> None:
    """Measure all methods on all problems and print a table of each.

    Args:
        runs: folder of the finished runs.
        out: folder for the numbers.
        data: "digits" or "cifar8".
        seeds: repetitions with other images.
        count: images of each.
        calls: network calls of each sample.
    """
    torch.set_num_threads(1)
    setting = SETTINGS[data](Path(runs))
    results: dict[str, Any] = {}
    for name in PROBLEMS:
        found = measure(Problem(name, setting, count), seeds, calls)
        results[name] = {method: {"summary": summarize(each), "seeds": each} for method, each in found.items()}
        print(f"\n{name}")
        show({method: each["summary"] for method, each in results[name].items()}, ["psnr", "misfit", "lost"])
        write(out, "images", results)


if __name__ == "__main__":
    run_script(study)
