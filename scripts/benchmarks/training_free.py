"""Time and memory of a step of training-free guidance relative to an unguided step.

    python -m scripts.benchmarks.training_free [--side 16 --batch 8]

Guided and unguided sampling of the same seeds alternate; the median of the ratios is printed. On a CPU the time is the
CPU time of this process, so that other processes do not matter. Memory is the peak of the allocations of torch since
the beginning of sampling, without the weights; on a CPU it is summed over the profiler's record of every allocation and
release, on a GPU it is `torch.cuda.max_memory_allocated`. With kept noise Heun's corrector costs no guidance, so the
sampler is Euler's, which treats all methods alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance.posterior import DAPS, DDNM, DDRM, MMPS, TMPD, DiffPIR, PiGDM, PosteriorGuidance, RePaint
from lightning_guide.guidance.training_free import LossGuidedDiffusion, SigmaWindow, UniversalGuidance
from lightning_guide.networks import EDM2UNet
from lightning_guide.networks.classifiers import NoisyClassifier, SmallClassifier
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import ClassLabel, Downsampled, Measurement
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import Subspace
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds
from scripts.lib.command_line import run_script
from scripts.lib.methods import Make, Task, methods_for

SAVINGS: dict[str, Make] = {
    "LGD, 10 draws, a guide_batch of 8": lambda w, rate: LossGuidedDiffusion(
        w.energy, rate, guide_batch=8, positive=w.positive
    ),
    "UG, every second step": lambda w, rate: UniversalGuidance(
        w.energy, rate, window=SigmaWindow(every=2), positive=w.positive
    ),
}
POSTERIOR: list[type[PosteriorGuidance]] = [PiGDM, TMPD, MMPS, DDNM, DDRM, DiffPIR, DAPS, RePaint]


def bench(
    *,
    device: str = "cpu",
    methods: list[str] = [],  # noqa: B006
    side: int = 16,
    batch: int = 8,
    steps: int = 2,
    repeats: int = 7,
) -> None:
    """Print one line of a table for each method.

    Args:
        device: device of the networks.
        methods: names of methods; default: all.
        side: height and width of the images.
        batch: samples.
        steps: steps of Euler's sampler.
        repeats: repetitions of each measurement of time.
    """
    torch.set_num_threads(1)
    shape = (3, side, side)
    network = EDM2UNet(shape, model_channels=64, channel_mult=(1, 2), num_blocks=1, attention_resolutions=(side // 2,))
    model = Preconditioned(network).eval().requires_grad_(False).to(device)
    guide = SmallClassifier(shape, num_classes=10).eval().requires_grad_(False).to(device)
    noisy = NoisyClassifier(shape, num_classes=10).eval().requires_grad_(False).to(device)
    basis = torch.linalg.qr(torch.randn(3 * side**2, side**2, dtype=torch.float64)).Q
    task = Task(ClassLabel(guide), model, Subspace(basis, data_shape=shape).to(device), guide, noisy)
    labels, sampler = torch.arange(batch, device=device) % 10, Euler(KarrasGrid(steps, sigma_min=0.1, sigma_max=10.0))

    def run(denoiser: Denoiser) -> None:
        seeds = SampleSeeds(0, range(batch))
        sampler.sample(denoiser, seeds=seeds, condition=labels if denoiser.num_classes else None, device=device)

    time_of, peak_of = measures(device)
    plain = partial(run, model)
    plain_peak = peak_of(plain)
    print("| method | time | memory |\n|---|--:|--:|")
    print(f"| unguided | 1 ({time_of(plain) / steps * 1e3:.0f} ms) | 1 ({plain_peak / 2**20:.1f} MiB) |")
    seen = Measurement(Downsampled(2), torch.zeros(shape))
    posterior = {kind.__name__: _posterior(kind, seen) for kind in POSTERIOR}
    for name, make in (methods_for(task) | SAVINGS | posterior).items():
        if methods and name not in methods:
            continue
        guided = partial(run, make(task, 1.0))
        pairs = [(time_of(plain), time_of(guided)) for _ in range(repeats + 1)][1:]
        ratio, memory = median(g / u for u, g in pairs), peak_of(guided) / plain_peak
        print(f"| {name} | {ratio:.2f} | {memory:.2f} |", flush=True)


def _posterior(kind: type[PosteriorGuidance], seen: Measurement) -> Make:
    return lambda task, rate: kind(seen, positive=task.positive)


Work = Callable[[], None]


def measures(device: str) -> tuple[Callable[[Work], float], Callable[[Work], int]]:
    """Return functions for the seconds of some work and for its peak of memory in bytes."""
    return (processor_time, recorded_peak) if device == "cpu" else (device_time, device_peak)


def processor_time(work: Work) -> float:
    """Return the CPU seconds of this process."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def device_time(work: Work) -> float:
    """Return the seconds until a GPU is done."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def recorded_peak(work: Work) -> int:
    """Return the largest sum of allocations not yet released."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    assert record.profiler is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def device_peak(work: Work) -> int:
    """Return the peak counted by the allocator of the GPU."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - before


if __name__ == "__main__":
    run_script(bench)
