"""Synthetic degradations, corrected by guidance with a guider degraded in the same or in another way.

    python -m scripts.studies.degradation.run configs/digits/main.yaml --out runs/digits/degradation

The good model is degraded on purpose (5 % dropout, or 10 % more input noise), the guider more (10 %, 20 %); matched and
mismatched pairs over a range of weights, all on the same seeds. Karras et al. 2024,
https://arxiv.org/abs/2406.02507, section 4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.lib.command_line import run_script
from scripts.lib.configs import Solver, class_config, solver
from scripts.lib.evaluations import over_seeds
from scripts.lib.seed_summary import show

NOISE = "lightning_guide.guidance.NoisyInput"
DROPOUT = "lightning_guide.guidance.SamplingDropout"


def study(
    run_config: str,
    *,
    out: str,
    dropout: tuple[float, float] = (0.05, 0.1),
    noise: tuple[float, float] = (0.1, 0.2),
    weights: list[float] = [1.5, 2.0, 3.0],  # noqa: B006
    seeds: int = 5,
    num_samples: int = 200,
    sampler: Solver = "DPMSolver2M",
    num_steps: int = 14,
    batch_size: int = 100,
) -> None:
    """Draw samples of all pairs and print the table.

    Args:
        run_config: config of the finished run; its network has dropout layers.
        out: folder for the results.
        dropout: probability in the good model and in the guider; the defaults are those of the paper.
        noise: relative rise of the noise level in the good model and in the guider.
        weights: guidance weights.
        seeds: number of sampling seeds.
        num_samples: samples for each point and seed.
        sampler: class of the sampler.
        num_steps: steps of the sampler.
        batch_size: samples in one network call.
    """
    good = {"dropout": _dropout(dropout[0]), "noise": _noise(noise[0])}
    bad = {"dropout": _dropout(dropout[1]), "noise": _noise(noise[1])}
    guidances: dict[str, Any] = {"unguided": None}
    guidances |= {f"{kind}, good": model for kind, model in good.items()}
    guidances |= {f"{kind}, bad": model for kind, model in bad.items()}
    for kind, positive in good.items():
        for other, negative in bad.items():
            for weight in weights:
                guided = class_config("Guided", positive=positive, negatives=[negative], weights=[weight])
                guidances[f"{kind} guided by {other}, w={weight:g}"] = guided
    common = {"num_samples": num_samples, "batch_size": batch_size, "sampler": solver(sampler, num_steps)}
    points = {name: common | ({"guidance": each} if each else {}) for name, each in guidances.items()}
    show(over_seeds(run_config, points, range(seeds), Path(out)), ("fd", "fd_change", "precision", "recall"))


def _dropout(probability: float) -> dict[str, Any]:
    return class_config("Perturbed", perturbations=[class_config(DROPOUT, probability=probability)])


def _noise(amount: float) -> dict[str, Any]:
    return class_config(NOISE, amount=amount)


if __name__ == "__main__":
    run_script(study)
