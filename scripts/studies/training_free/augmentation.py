"""Random augmentation: alignment of a classifier's gradients and the adversarial gap (experiment E3).

    python -m scripts.studies.training_free.augmentation --out runs/training_free/augmentation

The digits as a mixture: the posterior of the label at every noise level, and hence the guidance, is exact. A small
convolutional classifier is trained on draws of it; it is compared with one trained on noisy images, conditioned on the
noise level, and with one trained against L2 attacks. Measured: the cosine of the guiding displacement with the exact
one at high, middle and low noise; for samples, the cross-entropy of a second robust classifier that is not used as a
guide, that of the guide itself, the share of the target class by the exact posterior, and the exact log-density.
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance.training_free import (
    AddedNoise,
    Augmented,
    ClassifierGuidance,
    ColorJitter,
    ConstantStep,
    Cutout,
    EnergyGuidance,
    Estimator,
    PlugIn,
    PowerLaw,
    Rescaled,
    ThroughDenoiser,
    Translation,
)
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import ClassLabel
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds
from scripts.lib.command_line import run_script
from scripts.lib.digit_classifiers import Exact, InDouble, Unlabeled, trained
from scripts.lib.digit_prior import DigitPrior, double
from scripts.lib.results import write
from scripts.lib.seed_summary import show, summarize

LEVELS = {"high": 5.0, "mid": 1.0, "low": 0.2}
ESTIMATORS: dict[str, Estimator] = {
    "plain": PlugIn(),
    "RA10, all": Augmented([ColorJitter(), Translation(), Rescaled(), Cutout()], 10),
    "RA10, translation": Augmented([Translation()], 10),
    "RA10, color": Augmented([ColorJitter()], 10),
    "RA10, cutout": Augmented([Cutout()], 10),
    "noise 0.5, 10 copies": Augmented([AddedNoise(0.5)], 10),
}


def guides(prior: DigitPrior, nets: dict[str, InDouble], weight: float) -> dict[str, Denoiser]:
    """Build a guidance of the same weight for each guide."""
    found: dict[str, Denoiser] = {
        "exact": ClassifierGuidance(Exact(prior), weight, positive=Unlabeled(prior)),
        "noise-conditional": ClassifierGuidance(nets["noisy"], weight, positive=Unlabeled(prior)),
        "robust": plugged(prior, nets["robust"], PlugIn(), weight),
    }
    for name, estimator in ESTIMATORS.items():
        found[name] = plugged(prior, nets["clean"], estimator, weight)
    return found


def plugged(prior: DigitPrior, network: nn.Module, estimator: Estimator, weight: float) -> EnergyGuidance:
    """Build D - weight sigma^2 grad_x loss(D), with implied noise."""
    move = ThroughDenoiser(ConstantStep(weight, schedule=PowerLaw(2)))
    return EnergyGuidance(ClassLabel(network), [move], estimator=estimator, noise="implied", positive=Unlabeled(prior))


def study(
    out: str = "runs/training_free/augmentation",
    seeds: int = 5,
    count: int = 60,
    steps: int = 20,
    weight: float = 1.0,
    examples: int = 1500,
) -> None:
    """Train, sample, draw the figure and print the table.

    Args:
        out: folder for figure and numbers.
        seeds: number of seeds, each with its own classifiers and samples.
        count: samples for each seed and guide.
        steps: Euler steps from sigma = 20 to 0.05.
        weight: guidance weight of all guides; 1 gives the posterior for the exact one.
        examples: training examples of the classifiers.
    """
    torch.set_num_threads(1)
    prior = DigitPrior()
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        nets = {
            kind: trained(kind, prior, seed * 10 + i, examples=examples, steps=number)
            for i, (kind, number) in enumerate((("clean", 300), ("noisy", 800), ("robust", 200)))
        }
        judge = trained("robust", prior, seed * 10 + 5, examples=examples, steps=200)
        for name, guide in {"unguided": Unlabeled(prior), **guides(prior, nets, weight)}.items():
            own = {"exact": None, "noise-conditional": None, "robust": nets["robust"]}.get(name, nets["clean"])
            values = judged(prior, guide, judge, own, count, steps, seed)
            if name != "unguided":
                values |= aligned(prior, guide, count, seed)
            found.setdefault(name, []).append(values)
        print(f"seed {seed} done", flush=True)
    found["unguided"] = [values | dict.fromkeys(LEVELS, 0.0) for values in found["unguided"]]
    summary = {name: summarize(values) for name, values in found.items()}
    show(summary, ("judge", "own", "class", "logp"))
    show(summary, tuple(LEVELS))
    path = write(out, "augmentation", summary)
    figure(summary).savefig(path.with_suffix(".png"), dpi=130)


def judged(
    prior: DigitPrior, guide: Denoiser, judge: nn.Module, own: nn.Module | None, count: int, steps: int, seed: int
) -> dict[str, float]:
    """Return the scores of the samples of one guide."""
    seeds, labels = SampleSeeds(seed, range(count)), torch.arange(count) % 10
    sampler = Euler(KarrasGrid(steps, sigma_min=0.05, sigma_max=20.0))
    x = sampler.initial(prior, seeds).double()
    *_, end = sampler.steps(guide, x, seeds=seeds, condition=labels)
    exact = prior.log_labels(end.x, 0.05)
    return {
        "judge": float(F.cross_entropy(judge(end.x), labels)),
        "own": float(F.cross_entropy((own or judge)(end.x), labels)),
        "class": float((exact.argmax(1) == labels).double().mean()),
        "logp": float(prior.log_density(end.x, 0.05).mean()),
    }


def aligned(prior: DigitPrior, guide: Denoiser, count: int, seed: int) -> dict[str, float]:
    """Return the median cosine of the guiding displacement with the exact one, for images of other classes."""
    generator, found = torch.Generator().manual_seed(seed), {}
    x, labels = prior.sample(count, generator)
    targets = (labels + 1 + torch.randint(9, labels.shape, generator=generator)) % 10
    exact = ClassifierGuidance(Exact(prior), positive=Unlabeled(prior))
    for name, sigma in LEVELS.items():
        noised = x + sigma * torch.randn(x.shape, generator=generator, dtype=double)
        level = torch.tensor(sigma, dtype=double)
        D = prior(noised, level)
        ours, best = ((each(noised, level, targets) - D).flatten(1) for each in (guide, exact))
        found[name] = float(torch.cosine_similarity(ours, best, dim=1).median())
    return found


def figure(summary: dict[str, Any]) -> plt.Figure:
    """Draw alignment by noise level, and the judge's cross-entropy against the log-density."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    names = [name for name in summary if name not in ("unguided", "exact")]
    for i, (level, sigma) in enumerate(LEVELS.items()):
        values = [summary[name][level] for name in names]
        axes[0].barh(
            [k + 0.27 * (1 - i) for k in range(len(names))],
            [v["mean"] for v in values],
            height=0.25,
            xerr=[v["half_width"] for v in values],
            label=f"sigma = {sigma:g}",
        )
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    axes[0].set_xlabel("cosine with the exact guidance")
    axes[0].legend(fontsize=8)
    for name in ["exact", *names]:
        x, y = summary[name]["logp"], summary[name]["judge"]
        axes[1].errorbar(x["mean"], y["mean"], y["half_width"], x["half_width"], marker="o", capsize=2, label=name)
    axes[1].set(xlabel="log-density of the samples", ylabel="cross-entropy of the held-out robust judge", yscale="log")
    axes[1].legend(fontsize=7)
    return fig


if __name__ == "__main__":
    run_script(study)
