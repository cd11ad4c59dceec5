"""Is a synthetic degradation undone by guidance with more of the same, and not by another one?

    python scripts/degradation_study.py configs/digits/main.yaml --out runs/digits/degradation

The good model is degraded on purpose (5 % dropout, or 10 % more input noise), the guider more so (10 %, 20 %); matched
and mismatched pairs over a range of weights, the same seeds throughout. Karras et al. 2024,
https://arxiv.org/abs/2406.02507, section 4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from run_evaluations import Solver, over_seeds, solver
from seed_summary import show

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
    """Draws all pairs and prints the table.

    Args:
        run_config: config of the finished run; its network has dropout layers.
        out: folder for the results.
        dropout: probability in the good model and in the guider; the defaults are those of the paper.
        noise: relative rise of the noise level in the good model and in the guider.
        weights: of the guidance.
        seeds: sampling seeds.
        num_samples: for each point and seed.
        sampler: which one.
        num_steps: its steps.
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
                arguments = {"positive": positive, "negatives": [negative], "weights": [weight]}
                guided = {"class_path": "Guided", "init_args": arguments}
                guidances[f"{kind} guided by {other}, w={weight:g}"] = guided
    common = {"num_samples": num_samples, "batch_size": batch_size, "sampler": solver(sampler, num_steps)}
    points = {name: common | ({"guidance": each} if each else {}) for name, each in guidances.items()}
    show(over_seeds(run_config, points, range(seeds), Path(out)), ("fd", "fd_change", "precision", "recall"))


def _dropout(probability: float) -> dict[str, Any]:
    part = {"class_path": DROPOUT, "init_args": {"probability": probability}}
    return {"class_path": "Perturbed", "init_args": {"perturbations": [part]}}


def _noise(amount: float) -> dict[str, Any]:
    return {"class_path": NOISE, "init_args": {"amount": amount}}


if __name__ == "__main__":
    auto_cli(study)
