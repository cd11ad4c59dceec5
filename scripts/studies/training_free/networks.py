"""Digits with the parts or the outline of a reference image, by networks trained here, and MPGD through an autoencoder.

    python -m scripts.studies.training_free.networks --root runs/digits --out runs/training_free/networks

Guides are the runs `parts` and `sketch` of `root`. Samples are scored by the exact rules that these networks learned:
the share of pixels with the same part, and the distance of the outlines. References are held-out images, one per
sample. MPGD, MPGD-AE and MPGD-Z are guided to a label by the run `guide`, through the run `autoencoder`; the judge is
the run `judge`. The distance to the nearest training image measures whether a sample is still a digit. The model is the
run `unconditional`. Rates are chosen by the same four trials on other samples; groups of samples serve as seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from datamodules import Digits
from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance.training_free import (
    DPS,
    MPGD,
    ClippedStep,
    EnergyGuidance,
    MPGDLatent,
    NoiseScaledPolyakStep,
    ThroughDenoiser,
)
from lightning_guide.modules.image_tasks import outline, part_masks
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import ClassLabel, Energy, NetworkDistance
from lightning_guide.pretrained import RunAutoencoder, RunNetwork
from lightning_guide.runs.models import finished_model
from lightning_guide.samplers import ProportionalAncestral
from lightning_guide.seeds import SampleSeeds
from scripts.lib.command_line import run_script
from scripts.lib.results import write
from scripts.lib.seed_summary import show, summarize

Make = Callable[[float, Denoiser], Denoiser]
METRICS = ["score", "nearest"]


def study(root: str = "runs/digits", out: str = "runs/training_free/networks", seeds: int = 5, count: int = 12) -> None:
    """Tune, sample, draw the figure and print the tables.

    Args:
        root: folder of the runs.
        out: folder for figure and numbers.
        seeds: number of groups of samples.
        count: samples in a group.
    """
    torch.set_num_threads(1)
    data = Digits()
    model = finished_model(f"{root}/unconditional", None, 0.05).eval().requires_grad_(False)
    truth, training = (data.encode(each.x) for each in (data.heldout(), data.training()))
    label = ClassLabel(RunNetwork(f"{root}/guide"))
    judge, latent = RunNetwork(f"{root}/judge"), RunAutoencoder(f"{root}/autoencoder")
    tasks: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], dict[str, Make | None]]] = {
        "parts": (same_parts, distance(NetworkDistance(RunNetwork(f"{root}/parts"), truth))),
        "sketch": (same_outline, distance(NetworkDistance(RunNetwork(f"{root}/sketch"), truth))),
        "label": (
            lambda x, index: (judge(x).argmax(1) == index % 10).double(),
            {
                "unguided": None,
                "MPGD": lambda rate, m: MPGD(label, rate, positive=m),
                "MPGD-AE": lambda rate, m: MPGD(label, rate, autoencoder=latent, positive=m),
                "MPGD-Z": lambda rate, m: MPGDLatent(label, latent, 10 * rate, positive=m),
            },
        ),
    }
    sampler, samples = ProportionalAncestral(KarrasGrid(30, sigma_min=0.02, sigma_max=40.0), eta=0.5), {}
    results: dict[str, Any] = {}

    def drawn(make: Make | None, rate: float, indices: range) -> Tensor:
        guide = model if make is None else make(rate, model)
        labels = torch.tensor(indices) % 10 if guide.num_classes else None
        return sampler.sample(guide, seeds=SampleSeeds(0, indices), condition=labels).x.clamp(-1, 1)

    def judged(task: str, x: Tensor, indices: range) -> dict[str, Tensor]:
        index = torch.tensor(indices)
        given = index if task == "label" else truth[index % len(truth)]
        return {"score": tasks[task][0](x, given), "nearest": torch.cdist(x.flatten(1), training.flatten(1)).amin(1)}

    for task, (_, methods) in tasks.items():
        for name, make in methods.items():
            trials = {}
            for rate in (0.03, 0.1, 0.3, 1.0) if make else ():
                tried = judged(task, drawn(make, rate, range(1000, 1020)), range(1000, 1020))
                trials[rate] = {key: float(value.double().mean()) for key, value in tried.items()}
            rate = max(trials, key=lambda r: trials[r]["score"]) if trials else 0.0
            x = samples[task, name] = drawn(make, rate, range(seeds * count))
            values = judged(task, x, range(seeds * count))
            groups = [
                {key: float(v[seed::seeds].double().mean()) for key, v in values.items()} for seed in range(seeds)
            ]
            results.setdefault(task, {})[name] = {"rate": rate, "trials": trials, "seeds": groups} | summarize(groups)
            print(task, name, rate, summarize(groups), flush=True)
            write(out, "networks", results)
        show({name: {key: results[task][name][key] for key in METRICS} for name in methods}, METRICS)
    figure(samples, truth).savefig(Path(out) / "networks.png", dpi=130)


def distance(energy: Energy) -> dict[str, Make | None]:
    """Build no guidance, DPS, and a capped Polyak step."""
    return {
        "unguided": None,
        "DPS": lambda rate, model: DPS(energy, rate, positive=model),
        "Polyak, capped": lambda rate, model: EnergyGuidance(
            energy, [ThroughDenoiser(ClippedStep(NoiseScaledPolyakStep(rate)))], positive=model
        ),
    }


def same_parts(x: Tensor, reference: Tensor) -> Tensor:
    """Return the share (B,) of pixels of the same part."""
    return (part_masks(x) == part_masks(reference)).double().mean((1, 2))


def same_outline(x: Tensor, reference: Tensor) -> Tensor:
    """Return minus the distance (B,) of the outlines."""
    return -(outline(x) - outline(reference)).flatten(1).norm(dim=1)


def figure(samples: dict[tuple[str, str], Tensor], truth: Tensor) -> plt.Figure:
    """Draw the references, and the first twelve samples of each method in a row each."""
    rows = [("reference", truth[:12])] + [(f"{task}: {name}", x[:12]) for (task, name), x in samples.items()]
    fig, axes = plt.subplots(len(rows), 12, figsize=(9, 0.75 * len(rows)), layout="constrained")
    for line, (name, x) in zip(axes, rows, strict=True):
        for axis, image in zip(line, x, strict=True):
            axis.imshow(image[0].numpy(), cmap="gray", vmin=-1, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=6, rotation=0, ha="right", va="center")
    return fig


if __name__ == "__main__":
    run_script(study)
