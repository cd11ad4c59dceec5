"""Does random augmentation align the gradients of a classifier, and does it close the adversarial gap? (experiment E3)

    python scripts/energy_augmentation.py --out runs/energy/augmentation

The digits as a mixture: the exact posterior of the label at every noise level is known, and so is the exact guidance. A
small convolutional classifier learns on draws of it; comparators are one trained on noisy pictures, which knows the
noise level, and one trained against L2 attacks. Measured: cosine of the guiding displacement with the exact one
at high, middle and low noise; and of samples: the cross-entropy in the eyes of a second robust classifier that guided
nothing, that of the guide itself, the share of the wanted class by the exact posterior, and the exact log-density.
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import torch
from energy_digits import DigitPrior, double
from energy_mixtures import write
from jsonargparse import auto_cli
from seed_summary import show, summarize
from torch import Tensor, nn
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
from lightning_guide.modules.classifiers import adversarial_images
from lightning_guide.networks.classifiers import NoisyClassifier, SmallClassifier
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import ClassLabel
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds

WIDTHS = [16, 32, 32]
LEVELS = {"high": 5.0, "mid": 1.0, "low": 0.2}
ESTIMATORS: dict[str, Estimator] = {
    "plain": PlugIn(),
    "RA10, all": Augmented([ColorJitter(), Translation(), Rescaled(), Cutout()], 10),
    "RA10, translation": Augmented([Translation()], 10),
    "RA10, color": Augmented([ColorJitter()], 10),
    "RA10, cutout": Augmented([Cutout()], 10),
    "noise .5, 10 copies": Augmented([AddedNoise(0.5)], 10),
}


class Exact(nn.Module):
    """The exact ln p(y | x, sigma)."""

    num_classes = 10

    def __init__(self, prior: DigitPrior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.prior.log_labels(x, sigma)


class InDouble(nn.Module):
    """A float32 network for float64 pictures."""

    num_classes = 10

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        answer: Tensor = self.network(x.float(), *(other.float() for other in others))
        return answer.to(x.dtype)


def trained(kind: str, prior: DigitPrior, seed: int, *, examples: int, steps: int) -> InDouble:
    """A classifier that is "clean", "noisy" or "robust", on so many draws of the prior."""
    generator = torch.Generator().manual_seed(seed)
    x, labels = prior.sample(examples, generator)
    torch.manual_seed(seed)
    make: Any = NoisyClassifier if kind == "noisy" else SmallClassifier
    network = make([1, 8, 8], num_classes=10, widths=WIDTHS)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,), generator=generator)
        batch, y = x[rows].float(), labels[rows]
        if kind == "noisy":
            sigma = (torch.rand(128, generator=generator) * 6 - 3).exp()  # .05 to 20
            noise = torch.randn(batch.shape, generator=generator)
            loss = F.cross_entropy(network(batch + sigma[:, None, None, None] * noise, sigma), y)
        else:
            batch = adversarial_images(network, batch, y) if kind == "robust" else batch
            loss = F.cross_entropy(network(batch), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return InDouble(network)


def guides(prior: DigitPrior, nets: dict[str, InDouble], weight: float) -> dict[str, Denoiser]:
    """Guidance of the same weight by each guide."""
    found: dict[str, Denoiser] = {
        "exact": ClassifierGuidance(Exact(prior), weight, positive=Unlabeled(prior)),
        "noise-conditional": ClassifierGuidance(nets["noisy"], weight, positive=Unlabeled(prior)),
        "robust": plugged(prior, nets["robust"], PlugIn(), weight),
    }
    for name, estimator in ESTIMATORS.items():
        found[name] = plugged(prior, nets["clean"], estimator, weight)
    return found


class Unlabeled(Denoiser):
    """The prior without its labels."""

    data_shape, num_classes, sigma_data = (1, 8, 8), 0, 0.5

    def __init__(self, prior: DigitPrior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        clean: Tensor = self.prior(x, sigma)
        return clean


def plugged(prior: DigitPrior, network: nn.Module, estimator: Estimator, weight: float) -> EnergyGuidance:
    """D - weight sigma^2 grad_x loss(D), the noise implied."""
    move = ThroughDenoiser(ConstantStep(weight, schedule=PowerLaw(2)))
    return EnergyGuidance(ClassLabel(network), [move], estimator=estimator, noise="implied", positive=Unlabeled(prior))


def study(
    out: str = "runs/energy/augmentation",
    seeds: int = 5,
    count: int = 60,
    steps: int = 20,
    weight: float = 1.0,
    examples: int = 1500,
) -> None:
    """Trains, samples, draws the figure and prints the table.

    Args:
        out: folder for figure and numbers.
        seeds: each with classifiers and samples of its own.
        count: samples for each seed and guide.
        steps: Euler steps from sigma = 20 to .05.
        weight: of all guides; 1 is the posterior for the exact one.
        examples: that the classifiers learn on.
    """
    torch.set_num_threads(1)
    prior, found = DigitPrior(), {}
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
    """Scores of the samples of one guide."""
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
    """Median cosine of the guiding displacement with the exact one, for pictures of other classes than the wanted."""
    generator, found = torch.Generator().manual_seed(seed), {}
    x, labels = prior.sample(count, generator)
    wanted = (labels + 1 + torch.randint(9, labels.shape, generator=generator)) % 10
    exact = ClassifierGuidance(Exact(prior), positive=Unlabeled(prior))
    for name, sigma in LEVELS.items():
        noised = x + sigma * torch.randn(x.shape, generator=generator, dtype=double)
        level = torch.tensor(sigma, dtype=double)
        D = prior(noised, level)
        shifts = [(each(noised, level, wanted) - D).flatten(1) for each in (guide, exact)]
        found[name] = float(torch.cosine_similarity(*shifts, dim=1).median())
    return found


def figure(summary: dict[str, Any]) -> plt.Figure:
    """Alignment by noise level, and the judge's cross-entropy against the log-density."""
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
    auto_cli(study)
