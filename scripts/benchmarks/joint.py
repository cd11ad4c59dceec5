"""Time of one network call with twice the batch relative to two calls, for several batch sizes.

    python -m scripts.benchmarks.joint [--device cuda] [--channels 64] [--side 8]

Below 1 the joint call is faster. `lightning_guide.guidance.branches.SMALL` is chosen by these ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from lightning_guide.networks import EDM2UNet
from lightning_guide.preconditioning import Preconditioned
from scripts.lib.command_line import run_script


@torch.no_grad()
def bench(*, device: str = "cpu", channels: int = 64, side: int = 8, repeats: int = 15) -> None:
    """Time the two calls of classifier-free guidance, alternating between both forms.

    Args:
        device: device of the network.
        channels: model channels of an EDM2 U-Net with two levels.
        side: height and width of the images.
        repeats: repetitions of each measurement, of which the median is printed.
    """
    network = EDM2UNet(
        [3, side, side],
        num_classes=10,
        model_channels=channels,
        channel_mult=[1, 2],
        num_blocks=1,
        attention_resolutions=[side // 2],
    )
    model = Preconditioned(network).eval().to(device)
    sigma = torch.tensor(0.5, device=device)
    for batch in (1, 4, 16, 64, 256):
        x, labels = torch.randn(batch, 3, side, side, device=device), torch.arange(batch, device=device) % 10
        both = torch.cat([labels, torch.full_like(labels, -1)])
        apart, joint = [], []
        for _ in range(repeats + 2):
            apart.append(_seconds(partial(_two_calls, model, x, sigma, labels), device))
            joint.append(_seconds(partial(model, torch.cat([x, x]), sigma, both), device))
        ratio = median(joint[2:]) / median(apart[2:])
        print(f"batch {batch:4d}: two calls {1e3 * median(apart[2:]):8.2f} ms, one call / two calls {ratio:.2f}")


def _two_calls(model: Preconditioned, x: Tensor, sigma: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return model(x, sigma, labels), model(x, sigma)


def _seconds(call: Callable[[], object], device: str) -> float:
    """Return the wall-clock seconds of one call."""
    begin = time.perf_counter()
    call()
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    run_script(bench)
