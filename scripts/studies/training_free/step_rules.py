"""Convergence of step rules in 20, 50 and 100 steps (experiment E2).

    python -m scripts.studies.training_free.step_rules --out runs/training_free/step_rules

The digits as a mixture with an exact denoiser; the loss is the distance to a reference image under a fixed random
layer, |phi(D) - phi(ref)|. The sampler is `ProportionalAncestral` with eta = 0.5. For each rule and number of steps the
rate is tuned on other seeds, with the same trials for all: the smallest final loss among the rates that keep the
log-density of the samples within `slack` nats of the unguided one. So rules are compared at about equal plausibility.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.training_free import (
    ClippedStep,
    ConstantStep,
    EnergyGuidance,
    NoiseScaledPolyakStep,
    NormalizedStep,
    PolyakStep,
    PowerLaw,
    RootMeanSquareStep,
    StepRule,
    ThroughDenoiser,
)
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import Energy
from lightning_guide.objectives.energy import Loss
from lightning_guide.samplers import ProportionalAncestral
from lightning_guide.seeds import SampleSeeds
from scripts.lib.command_line import run_script
from scripts.lib.digit_prior import DigitPrior, double, images
from scripts.lib.results import write
from scripts.lib.seed_summary import summarize

RULES: dict[str, tuple[Callable[[float], StepRule], float]] = {
    "FreeDoM": (lambda rate: ConstantStep(rate, schedule=PowerLaw(scale_next=1)), 0.1),
    "constant": (lambda rate: ConstantStep(rate, schedule=PowerLaw(scale=1, scale_next=1)), 0.1),
    "rms": (RootMeanSquareStep, 0.3),
    "Polyak surrogate": (NoiseScaledPolyakStep, 0.01),
    "true Polyak": (PolyakStep, 0.1),
    "normalized": (NormalizedStep, 0.1),
    "Polyak surrogate, capped": (lambda rate: ClippedStep(NoiseScaledPolyakStep(rate)), 0.03),
    "true Polyak, capped": (lambda rate: ClippedStep(PolyakStep(rate)), 0.1),
    "normalized, capped": (lambda rate: ClippedStep(NormalizedStep(rate)), 0.1),
    "FreeDoM, capped": (lambda rate: ClippedStep(ConstantStep(rate, schedule=PowerLaw(scale_next=1))), 0.3),
}
FACTORS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
STEPS = [20, 50, 100]


class RandomFeatureDistance(Energy):
    """|phi(x) - phi(ref_i)| with phi(x) = tanh(W x), W (32, 64) fixed; the reference depends on the sample."""

    def __init__(self) -> None:
        super().__init__()
        self.W = 0.5 * torch.randn(32, 64, generator=torch.Generator().manual_seed(1), dtype=double)
        self.references = images()[0]

    def reference(self, seeds: SampleSeeds) -> Tensor:
        return self.references[[(seeds.seed * 131 + index) % len(self.references) for index in seeds.indices]]

    def start(self, trajectory: Trajectory) -> Loss:
        target = self.phi(self.reference(trajectory.seeds))
        return lambda x, condition, number: (self.phi(x) - target[number]).norm(dim=1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the loss (B,) of samples 0 ... B - 1 of seed 0."""
        return (self.phi(x) - self.phi(self.reference(SampleSeeds(0, range(len(x)))))).norm(dim=1)

    def phi(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.W.T).tanh()


def study(
    out: str = "runs/training_free/step_rules", seeds: int = 5, tuning: int = 2, count: int = 64, slack: float = 5.0
) -> None:
    """Tune, sample, draw the figure and print the table.

    Args:
        out: folder for figure and numbers.
        seeds: number of seeds of the results.
        tuning: number of other seeds for the choice of rates.
        count: samples for each seed.
        slack: nats of log-density that guidance may cost on the tuning seeds.
    """
    torch.set_num_threads(1)
    prior, loss = DigitPrior(), RandomFeatureDistance()
    real = prior.log_density(images()[0]).mean()
    results: dict[str, Any] = {"real log-density": float(real), "unguided": {}, "rules": {}}
    for steps in STEPS:
        plain = [draw(prior, loss, None, steps, count, seed) for seed in range(seeds)]
        results["unguided"][steps] = summarize(plain)
        least = results["unguided"][steps]["logp"]["mean"] - slack
        for name, (make, base) in RULES.items():
            trials = {}
            for factor in FACTORS:
                tried = [draw(prior, loss, make(base * factor), steps, count, 1000 + s) for s in range(tuning)]
                trials[base * factor] = {key: sum(each[key] for each in tried) / tuning for key in tried[0]}
            fair = {rate: each for rate, each in trials.items() if each["logp"] >= least}
            rate = min(fair, key=lambda each: fair[each]["loss"]) if fair else min(trials)
            found = summarize([draw(prior, loss, make(rate), steps, count, seed) for seed in range(seeds)])
            results["rules"].setdefault(name, {})[steps] = {"rate": rate, "trials": trials, **found}
            cells = [f"{key} {value['mean']:.3f} +- {value['half_width']:.3f}" for key, value in found.items()]
            print(f"{steps:4} steps  {name:26} rate {rate:7.3g}  {'  '.join(cells)}", flush=True)
        print(f"{steps:4} steps  unguided {results['unguided'][steps]}", flush=True)
    path = write(out, "step_rules", results)
    figure(results).savefig(path.with_suffix(".png"), dpi=130)


def draw(
    prior: DigitPrior, loss: RandomFeatureDistance, rule: StepRule | None, steps: int, count: int, seed: int
) -> dict[str, float]:
    """Return mean final loss and log-density; a diverged sample counts with a log-density of -1e6."""
    guide = prior if rule is None else EnergyGuidance(loss, [ThroughDenoiser(rule)], positive=prior)
    sampler = ProportionalAncestral(KarrasGrid(steps, sigma_min=0.05, sigma_max=20.0), eta=0.5)
    seeds = SampleSeeds(seed, range(count))
    *_, end = sampler.steps(guide, sampler.initial(prior, seeds).double(), seeds=seeds)
    final = (loss.phi(end.x) - loss.phi(loss.reference(seeds))).norm(dim=1)
    logp = prior.log_density(end.x).nan_to_num(nan=-1e6).clamp(min=-1e6)
    return {"loss": float(final.nan_to_num(nan=1e2).mean()), "logp": float(logp.mean())}


def figure(results: dict[str, Any]) -> plt.Figure:
    """Draw the final loss over the number of steps, without a cap and with."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for axis, capped in zip(axes, (False, True), strict=True):
        for name, found in results["rules"].items():
            if ("capped" in name) == capped:
                values = [found[steps]["loss"] for steps in STEPS]
                means, halves = [v["mean"] for v in values], [v["half_width"] for v in values]
                axis.errorbar(STEPS, means, halves, marker="o", capsize=2, label=name.replace(", capped", ""))
        axis.set(xscale="log", yscale="log", xlabel="steps", title="with a cap" if capped else "without a cap")
        axis.set_xticks(STEPS, [str(steps) for steps in STEPS])
        axis.set_yticks([0.5, 1, 2], ["0.5", "1", "2"])
        axis.minorticks_off()
        axis.legend(fontsize=8)
    axes[0].set_ylabel("final loss at equal log-density")
    return fig


if __name__ == "__main__":
    run_script(study)
