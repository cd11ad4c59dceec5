"""Cost of averages of the weights (EMA) relative to a training step, side by side in one run.

A training step (loss, backward pass, Adam, forced weight normalization) of the network of configs/cifar32/main.yaml,
then the update of both averages as `PostHocEMA` does it, and for comparison the same update tensor by tensor. The
goal is that both averages cost at most 2 % of a step.

    python -m scripts.benchmarks.ema --threads 2
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from lightning_guide.ema import gamma, retention, update_
from lightning_guide.networks import EDM2UNet
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.training.losses import EDMLoss

CIFAR32: dict[str, Any] = {
    "model_channels": 64,
    "channel_mult": [1, 2, 2],
    "num_blocks": 2,
    "attention_resolutions": [16, 8],
}
WIDTHS = (0.05, 0.10)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the wall time of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, batch = torch.device(arguments.device), arguments.batch_size

    torch.manual_seed(0)
    denoiser = Preconditioned(EDM2UNet([3, 32, 32], num_classes=10, **CIFAR32)).to(device)
    loss = EDMLoss().to(device)
    optimizer = torch.optim.Adam([*denoiser.parameters(), *loss.parameters()], lr=1e-3, betas=(0.9, 0.99))
    averages = {width: copy.deepcopy(denoiser).eval().requires_grad_(False) for width in WIDTHS}
    x = torch.randn(batch, 3, 32, 32, device=device) * 0.5
    labels = torch.arange(batch, device=device) % 10
    generator = torch.Generator(device).manual_seed(0)

    def step() -> None:
        optimizer.zero_grad()
        loss(denoiser, x, labels, generator).objective.mean().backward()
        optimizer.step()
        denoiser.constrain()
        loss.constrain()

    def update() -> None:
        weights = [parameter.detach() for parameter in denoiser.parameters()]
        for width, average in averages.items():
            update_(list(average.parameters()), weights, retention(gamma(width), 10_000, 10_000 + batch))

    def tensor_by_tensor() -> None:
        for width, average in averages.items():
            share = 1 - retention(gamma(width), 10_000, 10_000 + batch)
            for old, new in zip(average.parameters(), denoiser.parameters(), strict=True):
                old.lerp_(new.detach(), share)

    times: dict[str, list[float]] = {"training step": [], "both averages": [], "tensor by tensor": []}
    for repeat in range(arguments.repeats + 1):
        for name, work in zip(times, (step, update, tensor_by_tensor), strict=True):
            elapsed = seconds(work, device)
            if repeat:  # the first calls allocate
                times[name].append(elapsed)
    count = sum(parameter.numel() for parameter in denoiser.parameters())
    tensors = len(list(denoiser.parameters()))
    print(f"{count:,} weights in {tensors} tensors, batch {batch}, {arguments.threads} threads, {device}")
    base = statistics.median(times["training step"])
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"{name:>16}: {1000 * middle:9.2f} ms, {middle / base:8.3%} of a training step")


if __name__ == "__main__":
    main()
