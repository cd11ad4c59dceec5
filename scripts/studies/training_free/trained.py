"""Steps saved by a guide that was trained on noise: the trained comparator of experiment E2.

    python -m scripts.studies.training_free.trained --out runs/training_free/trained

The digits as a mixture with an exact denoiser: Bayes' rule gives the class of a sample and the exact guide. A
convolutional classifier of clean images guides by FreeDoM's and Polyak's rules; another one, trained on noise and
conditioned on its level, guides by classifier guidance. 20, 50 and 100 steps of `ProportionalAncestral` with eta = 0.5,
as in step_rules.py. Each guide is tuned for each number of steps on another seed with 6 rates: the smallest exact
cross-entropy of the class among the rates that cost at most `slack` nats of log-density.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import nn

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance.training_free import AugmentedPolyak, ClassifierGuidance, FreeDoM, FreeDoMCLIP
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import ClassLabel
from lightning_guide.samplers import ProportionalAncestral
from lightning_guide.seeds import SampleSeeds
from scripts.lib.command_line import run_script
from scripts.lib.digit_classifiers import Exact, Unlabeled, trained
from scripts.lib.digit_prior import DigitPrior
from scripts.lib.results import write
from scripts.lib.seed_summary import summarize
from scripts.studies.training_free.step_rules import FACTORS, STEPS

Make = Callable[[float], Denoiser]


def study(
    out: str = "runs/training_free/trained",
    seeds: int = 5,
    count: int = 50,
    slack: float = 5.0,
    examples: int = 1500,
    training: int = 5000,
    steps: list[int] = STEPS,  # noqa: B006
) -> None:
    """Train, tune, sample, draw the figure and print the table.

    Args:
        out: folder for figure and numbers.
        seeds: number of sampling seeds; the classifiers are the same for all.
        count: samples for each seed.
        slack: nats of log-density that guidance may cost on the tuning seed.
        examples: training examples of both classifiers.
        training: training steps of the classifier of noisy images; the other one has 300.
        steps: numbers of steps of the sampler.
    """
    torch.set_num_threads(1)
    prior = DigitPrior()
    clean = trained("clean", prior, 0, examples=examples, steps=300)
    noisy = trained("noisy", prior, 1, examples=examples, steps=training)
    results: dict[str, Any] = {"accuracy on noise": accuracies(prior, noisy), "unguided": {}, "guides": {}}
    print(results["accuracy on noise"], flush=True)
    for number in steps:
        plain = summarize([draw(prior, Unlabeled(prior), number, count, seed) for seed in range(seeds)])
        results["unguided"][number] = plain
        print(f"{number:4} steps  unguided {plain}", flush=True)
        for name, (make, base) in guides(prior, clean, noisy).items():
            trials = {base * f: draw(prior, make(base * f), number, count, 1000) for f in FACTORS}
            fair = {r: each for r, each in trials.items() if each["logp"] >= plain["logp"]["mean"] - slack}
            rate = min(fair, key=lambda each: fair[each]["loss"]) if fair else min(trials)
            found = summarize([draw(prior, make(rate), number, count, seed) for seed in range(seeds)])
            results["guides"].setdefault(name, {})[number] = {"rate": rate, "trials": trials, **found}
            cells = [f"{key} {value['mean']:.3f} +- {value['half_width']:.3f}" for key, value in found.items()]
            print(f"{number:4} steps  {name:22} rate {rate:7.3g}  {'  '.join(cells)}", flush=True)
            path = write(out, "trained", results)
    figure(results, steps).savefig(path.with_suffix(".png"), dpi=130)


def guides(prior: DigitPrior, clean: nn.Module, noisy: nn.Module) -> dict[str, tuple[Make, float]]:
    """Return guide -> constructor from a rate, and the unit of its rates."""
    loss, positive = ClassLabel(clean), Unlabeled(prior)
    return {
        "exact": (lambda rate: ClassifierGuidance(Exact(prior), rate, positive=positive), 1.0),
        "trained on noise": (lambda rate: ClassifierGuidance(noisy, rate, positive=positive), 1.0),
        "FreeDoM": (lambda rate: FreeDoM(loss, rate, positive=positive), 0.3),
        "FreeDoM, rms": (lambda rate: FreeDoMCLIP(loss, rate, positive=positive), 0.3),
        "Polyak": (lambda rate: AugmentedPolyak(loss, rate, augmentations=[], positive=positive), 0.01),
        "Polyak, capped": (
            lambda rate: AugmentedPolyak(loss, rate, augmentations=[], cap=0.3, positive=positive),
            0.03,
        ),
    }


def accuracies(prior: DigitPrior, noisy: nn.Module) -> dict[str, dict[str, float]]:
    """Return accuracies of the classifier of noisy images and of Bayes' rule, on fresh draws, by noise level."""
    generator, found = torch.Generator().manual_seed(7), {}
    x, labels = prior.sample(1000, generator)
    for sigma in (0.1, 0.5, 1.0, 2.0, 5.0):
        noised = x + sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        level = torch.full((len(x),), sigma, dtype=x.dtype)
        answers = {"trained": noisy(noised, level), "Bayes": prior.log_labels(noised, level)}
        found[f"{sigma:g}"] = {key: float((each.argmax(1) == labels).double().mean()) for key, each in answers.items()}
    return found


def draw(prior: DigitPrior, guide: Denoiser, steps: int, count: int, seed: int) -> dict[str, float]:
    """Return exact cross-entropy and share of the target class, and log-density (-1e6 for a diverged sample)."""
    seeds, labels = SampleSeeds(seed, range(count)), torch.arange(count) % 10
    sampler = ProportionalAncestral(KarrasGrid(steps, sigma_min=0.05, sigma_max=20.0), eta=0.5)
    *_, end = sampler.steps(guide, sampler.initial(prior, seeds).double(), seeds=seeds, condition=labels)
    x = end.x.nan_to_num(nan=1e3, posinf=1e3, neginf=-1e3).clamp(-1e3, 1e3)
    exact = prior.log_labels(x, 0.05)
    loss = -exact.gather(1, labels[:, None])[:, 0].clamp(min=-20)
    logp = prior.log_density(x, 0.05).clamp(min=-1e6)
    return {
        "loss": float(loss.mean()),
        "class": float((exact.argmax(1) == labels).double().mean()),
        "logp": float(logp.mean()),
    }


def figure(results: dict[str, Any], steps: list[int]) -> plt.Figure:
    """Draw the share of the target class and the log-density over the number of steps."""
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    for axis, key, title in zip(axes, ("class", "logp"), ("share of the target class", "log-density"), strict=True):
        for i, (name, found) in enumerate({"unguided": results["unguided"], **results["guides"]}.items()):
            values = [found[number][key] for number in steps]
            if key == "logp" and min(value["mean"] for value in values) < -100:
                continue  # far off any scale
            axis.errorbar(
                [number * 1.02**i for number in steps],
                [v["mean"] for v in values],
                [v["half_width"] for v in values],
                marker="o",
                capsize=2,
                label=name,
                color="0.6" if name == "unguided" else f"C{i}",
            )
        axis.set(xscale="log", xlabel="steps", ylabel=title)
        axis.set_xticks(steps, [str(number) for number in steps])
        axis.minorticks_off()
    axes[0].legend(fontsize=8)
    return fig


if __name__ == "__main__":
    run_script(study)
