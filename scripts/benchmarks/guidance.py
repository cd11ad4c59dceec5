"""Time of guided sampling relative to the network calls it reports: 1.05 means 5 % on top of them.

    python -m scripts.benchmarks.guidance [--device cuda] [--methods '[configs/guidance]']

Guided and unguided sampling of the same seeds alternate; the ratio is (guided / unguided) / (calls / unguided calls).
Crops (SWG) and vector-Jacobian products (REG) count as calls although they cost less, or more, than one.
"""

from __future__ import annotations

import time
from statistics import median

import torch

from lightning_guide.commands.guidance_files import build_guidances, read_guidances
from lightning_guide.denoiser import Denoiser
from lightning_guide.networks import EDM2UNet
from lightning_guide.noise import KarrasGrid
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.samplers import Heun
from lightning_guide.seeds import SampleSeeds
from scripts.lib.command_line import run_script


class Pair:
    """Models of a benchmark: the model is its own guider, at the same cost."""

    def __init__(self, main: Denoiser) -> None:
        self.main = main

    prompts = None

    def snapshot(self, *, run: str | None, images: int | float | str, sigma_rel: float) -> Denoiser:
        """The model itself."""
        return self.main


def bench(
    *,
    device: str = "cpu",
    methods: list[str] = ["configs/guidance"],  # noqa: B006
    side: int = 16,
    batch: int = 32,
    steps: int = 3,
    repeats: int = 7,
) -> None:
    """Print one line for each guidance.

    Args:
        device: device of the network.
        methods: files of guidances, or folders of them.
        side: height and width of the images.
        batch: samples.
        steps: steps of Heun's sampler.
        repeats: repetitions of each measurement, of which the median is printed.
    """
    network = EDM2UNet((3, side, side), num_classes=10, model_channels=64, channel_mult=(1, 2), num_blocks=1,
                       attention_resolutions=(side // 2,))  # fmt: skip
    models = Pair(Preconditioned(network).eval().to(device))
    labels = torch.arange(batch, device=device) % 10
    sampler = Heun(KarrasGrid(steps))

    def run(denoiser: Denoiser) -> tuple[float, int]:
        begin = time.perf_counter()
        seeds = SampleSeeds(0, range(batch))
        calls = sampler.sample(denoiser, seeds=seeds, condition=labels, device=device).evaluations
        if device != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - begin, calls

    for name, guidance in build_guidances(read_guidances(methods)).items():
        try:
            guided = guidance.resolve(models).eval()
        except ValueError as reason:
            print(f"{name:24s} left out: {reason}")
            continue
        pairs = [(run(models.main), run(guided)) for _ in range(repeats + 1)][1:]
        ratio = median(g / u for (u, _), (g, _) in pairs)
        (_, plain), (_, calls) = pairs[0]
        print(f"{name:24s} calls x{calls / plain:.2f}  time x{ratio:.2f}  time / calls {ratio * plain / calls:.3f}")


if __name__ == "__main__":
    run_script(bench)
