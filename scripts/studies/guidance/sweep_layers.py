"""Perturbed-attention guidance (PAG) of each attention layer alone, on the same seeds.

    python -m scripts.studies.guidance.sweep_layers configs/digits/main.yaml --run runs/digits/main \\
        --out runs/digits/layers

`lightning-guide sweep` takes an axis over `guidance.init_args.layers`, too, but needs the names of the layers in its
file, and its intervals are over blocks of one seed; this script finds the names in the network and has intervals over
seeds.
"""

from __future__ import annotations

from pathlib import Path

from lightning_guide.runs.models import finished_model
from lightning_guide.utils.modules import matching_names
from scripts.lib.command_line import run_script
from scripts.lib.configs import Solver, class_config, solver
from scripts.lib.evaluations import over_seeds
from scripts.lib.seed_summary import show


def sweep(
    run_config: str,
    *,
    run: str,
    out: str,
    sigma_rel: float = 0.05,
    weights: list[float] = [1.5, 2.5],  # noqa: B006
    seeds: int = 5,
    num_samples: int = 200,
    sampler: Solver = "DPMSolver2M",
    num_steps: int = 14,
    batch_size: int = 100,
) -> None:
    """Draw samples for all layers and print the table.

    Args:
        run_config: config of the finished run.
        run: folder of the run.
        out: folder for the results.
        sigma_rel: width of a stored average, read for the names of its layers.
        weights: guidance weights.
        seeds: number of sampling seeds.
        num_samples: samples for each point and seed.
        sampler: class of the sampler.
        num_steps: steps of the sampler.
        batch_size: samples in one network call.
    """
    network = finished_model(run, None, sigma_rel).network
    points = {"unguided": {"num_samples": num_samples, "batch_size": batch_size, "sampler": solver(sampler, num_steps)}}
    for layer in matching_names(network, "*.attention.core", "PAG"):  # type: ignore[arg-type]
        for weight in weights:
            guidance = class_config("PerturbedAttentionGuidance", weight=weight, layers=[layer])
            name = f"{layer.removesuffix('.attention.core')} w={weight:g}"
            points[name] = points["unguided"] | {"guidance": guidance}
    summary = over_seeds(run_config, points, range(seeds), Path(out))
    show(summary, ("fd", "fd_change", "precision", "recall", "class_agreement"))


if __name__ == "__main__":
    run_script(sweep)
