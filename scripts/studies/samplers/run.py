"""Distance of samplers to the exact end of their trajectory, by network calls, on the 2D fractal with its exact score.

Deterministic samplers end near the solution of the probability-flow ODE, the stochastic one near that of the SDE with
its Brownian path; both references are the same solver with many steps in double precision. Grid of EDM.

    python -m scripts.studies.samplers.run
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions import FractalTree
from lightning_guide.samplers import DEIS, PLMS, DPMSolver2M, DPMSolver3M, Euler, Heun, Sampler, SDEDPMSolver2M, UniPC
from lightning_guide.seeds import SampleSeeds
from scripts.lib.command_line import run_script
from scripts.lib.seed_summary import summarize

# steps of a given number of network calls
SAMPLERS: dict[str, tuple[Callable[[int], Sampler], Callable[[int], int]]] = {
    "Euler": (Euler, lambda calls: calls),
    "Heun": (Heun, lambda calls: (calls + 1) // 2),
    "PLMS": (PLMS, lambda calls: calls - 1),
    "DEIS, order 2": (partial(DEIS, order=2), lambda calls: calls),
    "DEIS, order 3": (DEIS, lambda calls: calls),
    "DEIS, order 4": (partial(DEIS, order=4), lambda calls: calls),
    "DPMSolver2M": (DPMSolver2M, lambda calls: calls),
    "DPMSolver3M": (DPMSolver3M, lambda calls: calls),
    "UniPC, order 2": (partial(UniPC, order=2), lambda calls: calls),
    "UniPC, order 3": (partial(UniPC, order=3), lambda calls: calls),
    "SDEDPMSolver2M": (SDEDPMSolver2M, lambda calls: calls),
}


def run(
    calls: Sequence[int] = (8, 12, 16, 24, 32, 64), *, count: int = 200, seeds: int = 5, reference_steps: int = 500
) -> dict[str, dict[str, dict[str, float]]]:
    """Print the median distance of samples to the reference, in units of the data's standard deviation, 0.5.

    Args:
        calls: numbers of network calls of a sample.
        count: samples for each seed.
        seeds: number of sampling seeds.
        reference_steps: steps of the references.
    """
    if seeds < 1 or count < 1 or not calls or min(calls) < 2 or reference_steps <= max(calls):
        raise ValueError(
            "the study needs seeds, samples, calls of 2 and more, and more reference_steps than calls, got "
            f"{seeds}, {count}, {list(calls)} and {reference_steps}"
        )
    denoiser = FractalTree("A").as_mixture()
    finest: dict[bool, list[Tensor]] = {
        False: [walk(UniPC(reference_steps, order=3), denoiser, seed, count) for seed in range(seeds)],
        True: [walk(SDEDPMSolver2M(reference_steps), denoiser, seed, count) for seed in range(seeds)],
    }
    found = {}
    for name, (kind, steps) in SAMPLERS.items():
        runs = []
        for seed, exact in enumerate(finest[kind is SDEDPMSolver2M]):
            ends = {str(n): walk(kind(steps(n)), denoiser, seed, count) for n in calls}
            runs.append({n: float((end - exact).norm(dim=1).median()) / 0.5 for n, end in ends.items()})
        found[name] = summarize(runs)
        cells = [f"{metric['mean']:.4f} ± {metric['half_width']:.4f}" for metric in found[name].values()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return found


def walk(sampler: Sampler, denoiser: Denoiser, seed: int, count: int) -> Tensor:
    """Return the samples 0 ... count - 1 of `seed`, (B, 2), computed in double precision."""
    seeds = SampleSeeds(seed, range(count))
    x = sampler.initial(denoiser, seeds).double()
    *_, end = sampler.steps(denoiser, x, seeds=seeds)
    return end.x


if __name__ == "__main__":
    run_script(run)
