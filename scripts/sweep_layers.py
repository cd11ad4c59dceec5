"""Which attention layer should be perturbed? Perturbed-attention guidance of each layer by itself, the same seeds.

python scripts/sweep_layers.py configs/digits/main.yaml --run runs/digits/main --out runs/digits/layers
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import auto_cli
from run_evaluations import Solver, over_seeds, solver
from seed_summary import show

from lightning_guide.runs.run import finished_model
from lightning_guide.utils.modules import matching_names


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
    """Draws all layers and prints the table.

    Args:
        run_config: config of the finished run.
        run: its folder.
        out: folder for the results.
        sigma_rel: an average that was stored, of which only the names of the layers matter.
        weights: of the guidance.
        seeds: sampling seeds.
        num_samples: for each point and seed.
        sampler: which one.
        num_steps: its steps.
        batch_size: samples in one network call.
    """
    network = finished_model(run, None, sigma_rel).network
    points = {"unguided": {"num_samples": num_samples, "batch_size": batch_size, "sampler": solver(sampler, num_steps)}}
    for layer in matching_names(network, "*.attention.core", "PAG"):  # type: ignore[arg-type]
        for weight in weights:
            arguments = {"weight": weight, "layers": [layer]}
            guidance = {"class_path": "PerturbedAttentionGuidance", "init_args": arguments}
            points[f"{layer.removesuffix('.attention.core')} w={weight:g}"] = points["unguided"] | {
                "guidance": guidance
            }
    summary = over_seeds(run_config, points, range(seeds), Path(out))
    show(summary, ("fd", "fd_change", "precision", "recall", "class_agreement"))


if __name__ == "__main__":
    auto_cli(sweep)
