"""Distance of guided estimates from the data manifold, with and without an autoencoder (experiment E4).

    python -m scripts.studies.training_free.manifold --out runs/training_free/manifold

A mixture of six components in a subspace of 8 of 128 dimensions, with a spread of 0.02 across it: the denoiser is
exact, and projection is a perfect autoencoder. The loss is the squared distance to the mean of a class, or to a target
off the subspace by a vector of length 2, as the gradient of a real network may point off it. Measured: the distance of
the guided estimate from the subspace in the middle of the trajectory (sigma = 1 to 0.1) and at the end, the share of
the target class, and the distance to its mean inside the subspace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance.training_free import DPS, MPGD, EnergyGuidance, MPGDLatent
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import Energy, SquaredDistance
from lightning_guide.pretrained import Subspace
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds
from scripts.lib.command_line import run_script
from scripts.lib.mixtures import double
from scripts.lib.results import write
from scripts.lib.seed_summary import summarize

DIM, INNER, K, SPREAD, ACROSS = 128, 8, 6, 0.3, 0.02
RATES = [0.03, 0.1, 0.3]
Make = Callable[[Energy, float, Subspace, Denoiser], EnergyGuidance]
METHODS: dict[str, Make] = {
    "DPS": lambda loss, rate, auto, prior: DPS(loss, rate, positive=prior),
    "MPGD": lambda loss, rate, auto, prior: MPGD(loss, rate, positive=prior),
    "MPGD-AE": lambda loss, rate, auto, prior: MPGD(loss, rate, autoencoder=auto, positive=prior),
    "MPGD-Z": lambda loss, rate, auto, prior: MPGDLatent(loss, auto, rate, positive=prior),
}


def study(out: str = "runs/training_free/manifold", seeds: int = 5, count: int = 48, steps: int = 24) -> None:
    """Sample, draw the figure and print the table.

    Args:
        out: folder for figure and numbers.
        seeds: number of seeds, each with its own subspace, components and offset.
        count: samples for each seed.
        steps: Euler steps from sigma = 10 to 0.02.
    """
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for offset in (0.0, 2.0):
        cases: dict[str, list[dict[str, float]]] = {}
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(seed)
            basis = torch.linalg.qr(torch.randn(DIM, INNER, generator=generator, dtype=double))[0]
            means = torch.randn(K, INNER, generator=generator, dtype=double) @ basis.T
            across = torch.randn(DIM, generator=generator, dtype=double)
            across = torch.nn.functional.normalize(across - basis @ (basis.T @ across), dim=0)
            covariance = ACROSS**2 * torch.eye(DIM, dtype=double) + (SPREAD**2 - ACROSS**2) * basis @ basis.T
            prior = GaussianMixture(means, covariance.expand(K, DIM, DIM))
            loss, auto = SquaredDistance(means[0] + offset * across), Subspace(basis)
            cases.setdefault("unguided", []).append(run(prior, None, basis, means, count, steps, seed))
            for name, make in METHODS.items():
                for rate in RATES:
                    guide = make(loss, rate, auto, prior)
                    cases.setdefault(f"{name} {rate:g}", []).append(run(prior, guide, basis, means, count, steps, seed))
        results[f"offset {offset:g}"] = {name: summarize(each) for name, each in cases.items()}
        for name, each in results[f"offset {offset:g}"].items():
            cells = [f"{key} {value['mean']:.3f} +- {value['half_width']:.3f}" for key, value in each.items()]
            print(f"offset {offset:g}  {name:14}", "  ".join(cells), flush=True)
    path = write(out, "manifold", results)
    figure(results).savefig(path.with_suffix(".png"), dpi=130)


def run(
    prior: GaussianMixture,
    guide: EnergyGuidance | None,
    basis: Tensor,
    means: Tensor,
    count: int,
    steps: int,
    seed: int,
) -> dict[str, float]:
    """Return the four measures of one method on one mixture."""
    seeds, sampler = SampleSeeds(seed, range(count)), Euler(KarrasGrid(steps, sigma_min=0.02, sigma_max=10.0))

    def off(x: Tensor) -> float:
        return float((x - x @ basis @ basis.T).norm(dim=1).mean())

    distances = []
    before, denoiser = sampler.initial(prior, seeds).double(), guide or prior
    for step in sampler.steps(denoiser, before, seeds=seeds):
        if 0.1 <= step.sigma <= 1:  # a deterministic step is D + sigma' noise: solve for D, noise kept or implied
            noise = (before - prior(before, torch.tensor(step.sigma, dtype=double))) / step.sigma
            distances.append(off(step.x - step.sigma_next * noise))
        before = step.x.clone()
    gaps = (before[:, None] - means).norm(dim=2)
    inside = ((before - means[0]) @ basis).norm(dim=1)
    return {
        "off the subspace": sum(distances) / len(distances),
        "off at the end": off(before),
        "class": float((gaps.argmin(1) == 0).double().mean()),
        "distance inside": float(inside.mean()),
    }


def figure(results: dict[str, Any]) -> plt.Figure:
    """Draw the distance off the subspace and the share of the class over the rate, for both targets."""
    fig, axes = plt.subplots(2, 2, figsize=(8, 5.6), sharex=True, sharey="row", layout="constrained")
    for column, (offset, found) in zip(axes.T, results.items(), strict=True):
        for axis, key in zip(column, ("off the subspace", "class"), strict=True):
            for name in METHODS:
                values = [found[f"{name} {rate:g}"][key] for rate in RATES]
                means, halves = [v["mean"] for v in values], [v["half_width"] for v in values]
                axis.errorbar(RATES, means, halves, marker="o", capsize=2, label=name)
            axis.axhline(found["unguided"][key]["mean"], color="gray", linestyle=":", label="unguided")
            axis.set(xscale="log")
            axis.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
            axis.minorticks_off()
        column[0].set_title("target in the subspace" if offset == "offset 0" else "target off the subspace")
        column[1].set_xlabel("rate")
    axes[0, 0].set_ylabel("mean |D off the subspace|")
    axes[1, 0].set_ylabel("share of the target class")
    axes[0, 0].legend(fontsize=8)
    return fig


if __name__ == "__main__":
    run_script(study)
