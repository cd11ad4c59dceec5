"""Time and memory of guided sampling relative to the pipelines of diffusers, on a U-Net of Stable Diffusion's widths.

    python -m scripts.benchmarks.diffusers [--channels 320] [--side 32] [--steps 4] [--repeats 5] [--device cpu]

Random weights, shared by both; classifier-free guidance, perturbed-attention guidance (PAG), and both. Runs alternate
with the same network calls alone; medians of the ratios of neighbors are printed, also of the CPU time,
which other processes disturb less; and the share of our time that is spent outside of the network. Peak memory is that
of fresh processes. The final latents are compared as well.
"""

from __future__ import annotations

import resource
import time
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import Guided, Perturbed, Unconditional
from lightning_guide.guidance.negatives import IdentityAttention
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import DiffusersNetwork
from lightning_guide.pretrained.schedulers import scheduled_sampling
from lightning_guide.seeds import SampleSeeds
from scripts.lib.command_line import run_script

Run = Callable[[], Tensor]
SCALE, PAG_SCALE = 5.0, 3.0
METHODS = ("cfg", "pag", "cfg+pag")


def build(channels: int, side: int) -> Any:
    """Return a U-Net with the blocks of Stable Diffusion 1.5, `channels` wide at the first level (320 there)."""
    import diffusers

    torch.manual_seed(0)
    unet: Any = diffusers.UNet2DConditionModel(
        sample_size=side,
        block_out_channels=[channels * factor for factor in (1, 2, 4, 4)],
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    return unet.eval()


class Pair:
    """A pipeline and our sampler with the same U-Net and texts."""

    def __init__(self, unet: Any, steps: int, device: str) -> None:
        import diffusers

        self.unet, self.steps = unet.to(device), steps
        self.scheduler: Any = diffusers.EulerDiscreteScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            timestep_spacing="leading",
            steps_offset=1,
        )
        generator = torch.Generator().manual_seed(1)
        self.texts, self.empty = torch.randn(2, 1, 77, 768, generator=generator).to(device)
        self.noise = torch.randn(1, 4, unet.config.sample_size, unet.config.sample_size, generator=generator).to(device)

    def theirs(self, method: str) -> Run:
        """Return the sampling of the pipeline."""
        import diffusers

        kind = diffusers.StableDiffusionPAGPipeline if "pag" in method else diffusers.StableDiffusionPipeline
        parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
        pipe: Any = kind(unet=self.unet, scheduler=self.scheduler, requires_safety_checker=False, **parts)
        pipe.set_progress_bar_config(disable=True)
        options: dict[str, Any] = {"pag_scale": PAG_SCALE} if "pag" in method else {}
        options["guidance_scale"] = SCALE if "cfg" in method else 1.0
        texts = {"prompt_embeds": self.texts, "negative_prompt_embeds": self.empty}
        return lambda: (
            pipe(latents=self.noise, num_inference_steps=self.steps, output_type="latent", **texts, **options).images
        )

    def ours(self, method: str) -> Run:
        """Return the sampling of a guidance."""
        network = DiffusersNetwork.of(self.unet, empty_length=77)
        network.empty.copy_(self.empty[0])
        settings = dict(self.scheduler.config) | {"_class_name": type(self.scheduler).__name__}
        found = scheduled_sampling(settings, self.steps)
        plain: Denoiser = Preconditioned(network, found.preconditioning, sigma_data=1.0)
        negatives: list[Denoiser] = [Unconditional(plain)] if "cfg" in method else []
        weights = [SCALE] if "cfg" in method else []
        if "pag" in method:
            negatives.append(Perturbed([IdentityAttention()], positive=plain))
            weights.append(1 + PAG_SCALE)
        guided = Guided(negatives, weights, positive=plain)
        first = float(found.sampler.levels(guided)[0])
        start = self.noise * (1 + first**2) ** 0.5

        def run() -> Tensor:
            *_, end = found.sampler.steps(guided, start, seeds=SampleSeeds(0, range(1)), condition=self.texts)
            return end.x

        return run

    def bare(self, method: str) -> Run:
        """Return as many calls of the network, with positive and negatives as one batch, and nothing around them."""
        rows = {"cfg": 2, "pag": 2, "cfg+pag": 3}[method]
        x, texts = self.noise.repeat(rows, 1, 1, 1), self.texts.repeat(rows, 1, 1)

        def run() -> Tensor:
            with torch.no_grad():
                for _ in range(self.steps):
                    result: Tensor = self.unet(x, 500.0, texts).sample
            return result

        return run

    def outside(self, run: Run) -> float:
        """Return the share of the time of `run` that is not spent in calls of the U-Net; its copies have its hooks."""
        inside, begun = [0.0], [0.0]
        before = self.unet.register_forward_pre_hook(lambda *_: begun.__setitem__(0, time.perf_counter()))
        after = self.unet.register_forward_hook(lambda *_: inside.append(time.perf_counter() - begun[0]))
        begin = time.perf_counter()
        run()
        total = time.perf_counter() - begin
        before.remove()
        after.remove()
        return 1 - sum(inside) / total


def peak(whose: str, method: str, channels: int, side: int) -> float:
    """Return the peak memory in MB of a process that samples 2 steps."""
    warnings.simplefilter("ignore")
    getattr(Pair(build(channels, side), 2, "cpu"), whose)(method)()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bench(
    *, channels: int = 320, side: int = 32, steps: int = 4, repeats: int = 5, device: str = "cpu", memory: bool = True
) -> None:
    """Print the ratios for each method.

    Args:
        channels: of the first level; 320 are those of Stable Diffusion 1.5, 32 a small trial.
        side: height and width of the latents.
        steps: of Euler's method.
        repeats: measurements of each.
        device: device of the network.
        memory: measure the peak memory on the CPU too, in processes of their own.
    """
    warnings.simplefilter("ignore")
    pair = Pair(build(channels, side), steps, device)
    for method in METHODS:
        runs = {whose: getattr(pair, whose)(method) for whose in ("theirs", "ours", "bare")}
        results = {whose: run() for whose, run in runs.items()}
        difference = (results["ours"] - results["theirs"]).abs().max() / results["theirs"].abs().max()
        seconds: dict[str, list[tuple[float, float]]] = {whose: [] for whose in runs}
        for i in range(repeats):
            order = list(runs) if i % 2 else list(runs)[::-1]
            for whose in order:
                seconds[whose].append(_seconds(runs[whose], device))
        print(f"{method:8} ours outside of the network {pair.outside(runs['ours']):.2%} of the time")
        wall = median(seconds_ours for seconds_ours, _ in seconds["ours"])
        print(f"{method:8} ours {wall:7.3f} s, largest difference of latents {float(difference):.1e}")
        for other in ("theirs", "bare"):
            pairs = list(zip(seconds["ours"], seconds[other], strict=True))
            by_wall, by_processor = (median(a[k] / b[k] for a, b in pairs) for k in (0, 1))
            print(f"{method:8} ours / {other:6} {by_wall:.3f}, CPU time {by_processor:.3f}")
    if memory:
        with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            for method in METHODS:
                ours, theirs = (pool.apply(peak, (whose, method, channels, side)) for whose in ("ours", "theirs"))
                print(f"{method:8} peak memory {ours:.0f} MB, ours / pipeline {ours / theirs:.3f}")


def _seconds(call: Run, device: str) -> tuple[float, float]:
    """Return the seconds of one call by the wall clock and of CPU time."""
    begin = time.perf_counter(), time.process_time()
    call()
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


if __name__ == "__main__":
    run_script(bench)
