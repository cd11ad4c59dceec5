"""Error of estimated guidance gradients against the exact ones (experiment E1).

    python -m scripts.studies.training_free.estimators --out runs/training_free/estimators

Gaussian mixtures with a quadratic loss, and with the exact classifier as the loss; both have the exact gradient in
closed form. Plug-in (DPS) against LGD-MC with n draws, with the paper's spread r = sigma / sqrt(1 + sigma^2) and with
that of one component of the data, over dimensions and noise levels. Relative error |g - g*| / |g*|: the median over the
x of a mixture, then the median and the quartiles over mixtures.
"""

from __future__ import annotations

import math
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance.training_free import (
    ConstantStep,
    EnergyGuidance,
    Estimator,
    MonteCarlo,
    PlugIn,
    ThroughDenoiser,
)
from lightning_guide.objectives import Energy, SquaredDistance
from scripts.lib.command_line import run_script
from scripts.lib.mixtures import Problem, double
from scripts.lib.results import quartiles, write

DRAWS = [1, 3, 10, 30, 100, 1000]


class ExactLabel(Energy):
    """-log pi_0(x_0), the exact posterior of the first component."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        means = self.problem.means.to(x)
        return -(-(x[:, None] - means).square().sum(2) / (2 * self.problem.s**2)).log_softmax(1)[:, 0]


def slope(prior: GaussianMixture, loss: Energy, estimator: Estimator, x: Tensor, sigma: float) -> Tensor:
    """Return the estimated gradient (n, d), computed by the guidance itself."""
    guide = EnergyGuidance(loss, [ThroughDenoiser(ConstantStep(1.0))], estimator=estimator, positive=prior)
    level = torch.tensor(sigma, dtype=double)
    return prior(x, level) - guide(x, level)


def relative(found: Tensor, exact: Tensor) -> float:
    """Return the median relative error over the rows."""
    return float(((found - exact).norm(dim=1) / exact.norm(dim=1)).median())


def study(
    out: str = "runs/training_free/estimators",
    mixtures: int = 20,
    points: int = 24,
    dims: list[int] = [2, 16, 64, 256],  # noqa: B006
    sigmas: list[float] = [0.3, 1.0, 3.0],  # noqa: B006
) -> None:
    """Measure, draw the figure and print the table.

    Args:
        out: folder for figure and numbers.
        mixtures: number of random mixtures, seeds 0, 1, ...
        points: number of x for each mixture and noise level.
        dims: dimensions.
        sigmas: noise levels.
    """
    torch.set_num_threads(1)
    errors: dict[str, dict[str, list[float]]] = {}
    for dim in dims:
        for seed in range(mixtures):
            problem = Problem.draw(seed, dim=dim, T=0.5 * math.sqrt(dim))
            prior, generator = problem.prior(), torch.Generator().manual_seed(seed + 1000)
            for sigma in sigmas:
                x = problem.noised(points, sigma, generator)
                found = quadratic(problem, prior, x, sigma)
                if sigma == max(sigmas) and dim <= 64:  # elsewhere the label is certain, and its gradient vanishes
                    found |= label(problem, prior, x, sigma)
                for name, error in found.items():
                    errors.setdefault(f"d={dim} sigma={sigma:g}", {}).setdefault(name, []).append(error)
    results = {place: {name: quartiles(each) for name, each in found.items()} for place, found in errors.items()}
    path = write(out, "estimators", results)
    figure(results, dims, sigmas).savefig(path.with_suffix(".png"), dpi=130)
    for place, summary in results.items():
        print(f"{place:16}", "  ".join(f"{name} {each['median']:.3g}" for name, each in summary.items()))


def quadratic(problem: Problem, prior: GaussianMixture, x: Tensor, sigma: float) -> dict[str, float]:
    """Return relative errors of all estimators for the quadratic loss."""
    exact = problem.exact_slope(x, sigma)
    loss = SquaredDistance(problem.target, problem.T)
    found = {"plug-in": relative(slope(prior, loss, PlugIn(), x, sigma), exact)}
    for name, std in (("LGD", 1.0), ("matched", problem.s)):
        for n in DRAWS:
            if name == "LGD" or n in (10, 1000):
                estimator = MonteCarlo(n, data_std=std)
                found[f"{name} {n}"] = relative(slope(prior, loss, estimator, x, sigma), exact)
        wide = SquaredDistance(problem.target, math.hypot(problem.T, MonteCarlo(1, data_std=std).spread(sigma)))
        found[f"{name} inf"] = relative(slope(prior, wide, PlugIn(), x, sigma), exact)
    return found


def label(problem: Problem, prior: GaussianMixture, x: Tensor, sigma: float) -> dict[str, float]:
    """Return relative errors for the exact classifier of clean points, against that of noisy points."""
    loss = ExactLabel(problem)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        log_pi = -(leaf[:, None] - problem.means).square().sum(2) / (2 * (problem.s**2 + sigma**2))
        (exact_label,) = torch.autograd.grad(-log_pi.log_softmax(1)[:, 0].sum(), leaf)
    found = {"label plug-in": relative(slope(prior, loss, PlugIn(), x, sigma), exact_label)}
    for n in (1, 10, 100, 1000):
        found[f"label LGD {n}"] = relative(slope(prior, loss, MonteCarlo(n), x, sigma), exact_label)
    return found


def figure(results: dict[str, Any], dims: list[int], sigmas: list[float]) -> plt.Figure:
    """Draw the error over n, a panel for each noise level and a color for each dimension."""
    fig, axes = plt.subplots(1, len(sigmas), figsize=(4 * len(sigmas), 3.6), sharey=True, layout="constrained")
    for axis, sigma in zip(axes, sigmas, strict=True):
        for i, dim in enumerate(dims):
            found = results[f"d={dim} sigma={sigma:g}"]
            lines = [found[f"LGD {n}"] for n in DRAWS]
            color = f"C{i}"
            axis.plot(DRAWS, [each["median"] for each in lines], "o-", color=color, label=f"d = {dim}")
            axis.fill_between(DRAWS, [e["q25"] for e in lines], [e["q75"] for e in lines], color=color, alpha=0.15)
            axis.axhline(found["plug-in"]["median"], color=color, linestyle="--", linewidth=1)
            axis.axhline(found["LGD inf"]["median"], color=color, linestyle=":", linewidth=1)
        axis.set(xscale="log", yscale="log", title=f"sigma = {sigma:g}", xlabel="draws n")
    axes[0].set_ylabel("relative error of the gradient")
    axes[0].legend(title="LGD; -- plug-in, .. n = inf", fontsize=8, title_fontsize=8)
    return fig


if __name__ == "__main__":
    run_script(study)
