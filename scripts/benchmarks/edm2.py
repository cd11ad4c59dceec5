"""Speed of the EDM2 network relative to the direct formulation: 1.5 means two thirds of its time.

    python -m scripts.benchmarks.edm2 [--device cuda] [--threads 2] [--measure '[training,sampling]']

The baseline is `direct_edm2.DirectEDM2` in plain eager PyTorch, its weights normalized in every forward pass. Baseline
and network alternate in one process; printed are the medians of the ratios of neighboring times, so that a steady load
on the machine cancels.

training: loss, backward pass and optimizer step (the baseline with PyTorch's default Adam), eager.
reduced: evaluation and sampling, if measured, also in bfloat16 by autocast, as with `trainer.precision: bf16-mixed`.
compiled: training, and evaluation and sampling if they are measured, also with `torch.compile` of the networks.
evaluation: one call of the network without gradients, as in training and with fused weights (`inference`).
sampling: Heun with autoguidance, fused weights; and its time over that of its network calls timed alone.
profile: the operators that take most of an evaluation's time, and their shares of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import Autoguidance
from lightning_guide.inference import fuse_weights
from lightning_guide.networks import EDM2UNet
from lightning_guide.noise import KarrasGrid
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.samplers import Heun
from lightning_guide.seeds import SampleSeeds
from lightning_guide.training.learning_rate import adam
from scripts.benchmarks.direct_edm2 import DirectEDM2
from scripts.lib.command_line import run_script

Measure = Literal["training", "compiled", "evaluation", "sampling", "reduced", "profile"]


class Baseline(Denoiser):
    """The direct formulation, with class labels converted to one-hot rows."""

    def __init__(self, net: DirectEDM2, shape: Sequence[int]) -> None:
        super().__init__()
        self.net, self.data_shape, self.num_classes, self.sigma_data = net, tuple(shape), net.num_classes, 0.5

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """D `(B, C, H, W)`."""
        rows = None if condition is None else nn.functional.one_hot(condition, self.num_classes).to(x)
        return self.net(x, sigma.expand(len(x)), rows)


def seconds(call: Callable[[], object], device: str) -> float:
    """Return the time of one call: on one thread CPU time, which other processes do not lengthen."""
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    call()
    if device != "cpu":
        torch.accelerator.synchronize()
    return clock() - begin


def reduced(call: Callable[[], object], device: str) -> Callable[[], object]:
    """Return `call` in bfloat16."""
    return torch.autocast(device, torch.bfloat16)(call)


def compare(
    name: str, base: Callable[[], object], calls: dict[str, Callable[[], object]], *, rounds: int, device: str
) -> None:
    """Print how much faster than `base` each of `calls` is."""
    times: list[list[float]] = []
    for _ in range(rounds + 1):  # the first one warms up
        times.append([seconds(call, device) for call in (base, *calls.values())])
    for i, what in enumerate(calls, 1):
        ratios = sorted(row[0] / row[i] for row in times[1:])
        alone = median(row[i] for row in times[1:])
        print(f"{name:12s} {what:28s} x{median(ratios):.2f}  ({ratios[0]:.2f} to {ratios[-1]:.2f}; {alone:.3f} s)")


def profile(calls: dict[str, Callable[[], object]], *, most: int = 5) -> None:
    """Print the operators that take most of the CPU time in each of `calls`."""
    for name, call in calls.items():
        call()
        with torch.profiler.profile() as profiler:
            call()
        took = sorted(((each.self_cpu_time_total, each.key) for each in profiler.key_averages()), reverse=True)
        total = sum(time for time, _ in took)
        shares = ", ".join(f"{key} {time / total:.0%}" for time, key in took[:most])
        print(f"{'profile':12s} {name:28s} {shares}")


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, sigma: Tensor, labels: Tensor) -> None:
    """Take one training step without drawing noise, whose cost is negligible."""
    optimizer.zero_grad()
    model(x, sigma, labels).square().mean().backward()
    optimizer.step()
    if isinstance(model, Preconditioned):
        model.constrain()


def bench(
    *,
    measure: list[Measure] = ["training", "evaluation", "sampling"],  # noqa: B006
    device: str = "cpu",
    threads: int = 2,
    side: int = 32,
    channels: int = 64,
    batch: int = 16,
    steps: int = 3,
    rounds: int = 5,
) -> None:
    """Print one line for each comparison.

    Args:
        measure: comparisons to make.
        device: device of the networks.
        threads: threads of PyTorch on the CPU.
        side: height and width of the images.
        channels: channels of the network's first level.
        batch: images in a training step, and samples.
        steps: steps of Heun's sampler; the ratio does not depend on them.
        rounds: rounds of all calls in turn, after one to warm up.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shape = (3, side, side)
    attention = [size for size in (16, 8) if size <= side]
    x, sigma = torch.randn(batch, *shape, device=device), (torch.rand(batch) + 0.1).to(device)
    labels = torch.arange(batch, device=device) % 10

    def direct() -> Baseline:
        net = DirectEDM2(3, side, num_classes=10, model_channels=channels, attn_resolutions=attention)
        return Baseline(net, shape).to(device)

    def ours() -> Preconditioned:
        net = EDM2UNet(shape, num_classes=10, model_channels=channels, attention_resolutions=attention)
        return Preconditioned(net).to(device)

    def trained(model: Denoiser) -> Callable[[], None]:
        make = adam() if isinstance(model, Preconditioned) else torch.optim.Adam
        optimizer = make(model.parameters())
        return lambda: step(model, optimizer, x, sigma, labels)

    if "training" in measure:
        compare("training", trained(direct()), {"eager": trained(ours())}, rounds=rounds, device=device)
    if "compiled" in measure:
        model = ours()
        model.network.compile()
        compare("training", trained(direct()), {"compiled": trained(model)}, rounds=rounds, device=device)
    with torch.no_grad():
        base, main, guider = direct().eval(), ours().eval(), ours().eval()
        if "evaluation" in measure or "profile" in measure:
            ready = fuse_weights(main)
            calls: dict[str, Callable[[], object]] = {
                "baseline": lambda: base(x, sigma, labels),
                "as in training": lambda: main(x, sigma, labels),
                "fused": lambda: ready(x, sigma, labels),
            }
            if "compiled" in measure:
                quick = fuse_weights(main, compile=True)
                calls["compiled"] = lambda: quick(x, sigma, labels)
            if "reduced" in measure:
                calls["fused, bfloat16"] = reduced(calls["fused"], device)
            if "profile" in measure:
                profile(calls)
            if "evaluation" in measure:
                compare("evaluation", calls.pop("baseline"), calls, rounds=rounds, device=device)
        if "sampling" in measure:
            other, sampler = direct().eval(), Heun(KarrasGrid(steps))

            def drawn(denoiser: Denoiser) -> Callable[[], object]:
                seeds = SampleSeeds(0, range(batch))
                return lambda: sampler.sample(denoiser, seeds=seeds, condition=labels, device=device)

            guided = drawn(fuse_weights(Autoguidance(guider, 2.0, positive=main)))
            plainly = drawn(Autoguidance(other, 2.0, positive=base))
            ways = {"Heun, autoguidance": guided}
            if "reduced" in measure:
                ways["bfloat16"] = reduced(guided, device)
            if "compiled" in measure:
                ways["compiled"] = drawn(fuse_weights(Autoguidance(guider, 2.0, positive=main), compile=True))
            compare("sampling", plainly, ways, rounds=rounds, device=device)
            both, level = [fuse_weights(main), fuse_weights(guider)], torch.tensor(1.0, device=device)

            def alone() -> None:
                for _ in range(2 * steps - 1):
                    for model in both:
                        model(x, level, labels)

            compare("guided cost", guided, {"its network calls alone": alone}, rounds=rounds, device=device)


if __name__ == "__main__":
    run_script(bench)
