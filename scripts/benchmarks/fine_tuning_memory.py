"""What fine-tuning of published models trains, stores and holds in memory, counted from the shapes of their weights.

    python -m scripts.benchmarks.fine_tuning_memory

Whole: weights, gradients and Adam's two moments in 32 bits, 16 bytes a parameter, and 4 for each average. Low-rank: the
model in 16 bits, and 16 + 4 bytes for each number of the additions. Activations are not counted.
"""

from __future__ import annotations

from lightning_guide.optimization import LowRank
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import DiffusersNetwork
from scripts.lib.command_line import run_script
from scripts.lib.published_models import PUBLISHED

__all__ = ["count", "main"]

SHOWN = ("Stable Diffusion 1.5", "SDXL", "DiT-XL/2 256", "PixArt-alpha 512", "Stable Diffusion 3 medium", "FLUX.1 dev")


def count(network: DiffusersNetwork, rank: int) -> tuple[int, int, int]:
    """Return the parameters of a `network` on the meta device, those of additions of `rank`, and the adapted layers."""
    whole = sum(parameter.numel() for parameter in network.parameters())
    model = LowRank(Preconditioned(network, sigma_data=1.0), rank=rank)
    added = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    return whole, sum(added), len(model.adapted)


def main(rank: int = 8) -> None:
    """Print the table for additions of `rank`."""
    print("| model | layers | trained, M | snapshot, MB | memory, low-rank, GB | memory, whole, GB |")
    print("|---|--:|--:|--:|--:|--:|")
    for name in SHOWN:
        whole, added, layers = count(PUBLISHED[name].build(), rank)
        sizes = (added / 1e6, 4 * added / 1e6, (2 * whole + 20 * added) / 1e9, 20 * whole / 1e9)
        print(f"| {name} | {layers} | " + " | ".join(f"{size:.3g}" for size in sizes) + " |")


if __name__ == "__main__":
    run_script(main)
