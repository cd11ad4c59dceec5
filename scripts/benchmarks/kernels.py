"""Kernels, bytes moved, floating-point operations and waits of ours and of the direct EDM2, on an emulated device.

    python -m scripts.benchmarks.kernels

The network is EDM2's with 64 channels on 32 x 32 x 3 with 10 classes, for 2 samples. A kernel is an operation of torch
that computes something; lists of tensors take as many as torch launches for them on CUDA. Attention is counted as its
plain formula of five kernels, which is one where CUDA fuses it; a library may run several kernels for a convolution.
A kernel reads all its tensors and writes its results, without a cache. Kernels and waits hold for every batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import Autoguidance, ClassifierFreeGuidance
from lightning_guide.inference import fuse_weights
from lightning_guide.networks import EDM2UNet
from lightning_guide.noise import KarrasGrid
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.samplers import Heun
from lightning_guide.seeds import SampleSeeds
from lightning_guide.training.learning_rate import adam
from lightning_guide.training.losses import EDMLoss
from lightning_guide.training.monitor import GradientGuard
from scripts.benchmarks.direct_edm2 import DirectEDM2
from scripts.benchmarks.edm2 import Baseline
from scripts.lib.command_line import run_script
from scripts.lib.cuda_rules import Operation, leaves
from scripts.lib.emulated_device import DEVICE, EmulatedDevice

__all__ = ["Cost", "Meter", "costs", "main"]

BATCH = 2
SAMPLER, CALLS = Heun(KarrasGrid(2)), 3


class Cost(NamedTuple):
    """What one piece of work costs."""

    kernels: int
    bytes: int
    flops: int
    waits: int


class Meter(EmulatedDevice):
    """An emulated device that counts bytes and floating-point operations as well."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.flops = 0

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation and add its cost."""
        before = self.kernels, self.bytes
        result = super().run(func, args, kwargs)
        inner = self.bytes != before[1]  # it consists of others, which were counted
        if self.kernels > before[0] and not inner and Operation(func, args, kwargs).kernels:
            given = {name: value for name, value in kwargs.items() if name != "out"}
            self.bytes += sum(_size(x) for x in leaves([*args, *given.values(), result]) if isinstance(x, Tensor))
            count = flop_registry.get(func.overloadpacket)
            self.flops += count(*args, **kwargs, out_val=result) if count is not None else 0
        return result

    def cost(self, work: Callable[[], object]) -> Cost:
        """Return the cost of `work`."""
        self.forget()
        self.bytes = self.flops = 0
        work()
        return Cost(self.kernels, self.bytes, self.flops, len(self.waits))


def _size(x: Tensor) -> int:
    """Return the bytes of a tensor, of an expanded one those that exist."""
    shape = [size for size, stride in zip(x.shape, x.stride(), strict=True) if stride]
    return torch.Size(shape).numel() * x.element_size()


def costs(model: Denoiser, guider: Denoiser) -> dict[str, Cost]:
    """Return what is done -> its cost, for a model and a guider with classes."""
    meter = Meter()
    with meter:
        model.to(DEVICE)
        guider.to(DEVICE)
        x, sigma = torch.zeros(BATCH, *model.data_shape, device=DEVICE), torch.ones(BATCH, device=DEVICE)
        labels = torch.zeros(BATCH, dtype=torch.int64)
        there = labels.to(DEVICE)
        step = _training_step(model.train(), x, there)
        step()  # makes the states of the optimizer
        found = {"training step": meter.cost(step)}
        found["its forward pass of the network"] = meter.cost(lambda: model(x, sigma, there))
        guided: dict[str, Denoiser] = {
            "network call of sampling, without guidance": model.eval().requires_grad_(False),
            "classifier-free guidance": ClassifierFreeGuidance(2.0, positive=model),
            "autoguidance": Autoguidance(guider.eval().requires_grad_(False), 2.0, positive=model),
        }
        for name, denoiser in guided.items():
            cost = meter.cost(_sampling(fuse_weights(denoiser), labels))
            found[name] = Cost(*(-(-number // CALLS) for number in cost))
    return found


def _sampling(denoiser: Denoiser, labels: Tensor) -> Callable[[], object]:
    return lambda: SAMPLER.sample(denoiser, seeds=SampleSeeds(0, range(BATCH)), condition=labels, device=DEVICE)


def _training_step(model: Denoiser, x: Tensor, labels: Tensor) -> Callable[[], object]:
    """Loss, backward pass and Adam; ours with the guard and forced normalization, a part of the direct call."""
    loss, guard = EDMLoss().to(DEVICE), GradientGuard(100)
    parameters = [*model.parameters(), *loss.parameters()]
    ours = isinstance(model, Preconditioned)
    optimizer = adam(scaled=False, elements=3072)(parameters) if ours else torch.optim.Adam(parameters)

    def step() -> None:
        optimizer.zero_grad()
        loss(model, x, labels, torch.Generator(DEVICE).manual_seed(0)).objective.mean().backward()
        if isinstance(model, Preconditioned):
            guard.check(model, optimizer, 0)
        optimizer.step()
        if isinstance(model, Preconditioned):
            model.constrain()

    return step


def main() -> None:
    """Print the table."""
    shape = (3, 32, 32)
    ours = costs(*(Preconditioned(EDM2UNet(shape, num_classes=10, model_channels=width)) for width in (64, 32)))
    nets = (DirectEDM2(3, 32, num_classes=10, model_channels=width) for width in (64, 32))
    direct = costs(*(Baseline(net, shape) for net in nets))
    print("| | kernels | direct | MB moved | direct | GFLOP | direct | waits | direct |\n| --- |" + " ---: |" * 8)
    for name, a in ours.items():
        b = direct[name]
        cells = [f"{a.kernels:,}", f"{b.kernels:,}", f"{a.bytes / 1e6:,.0f}", f"{b.bytes / 1e6:,.0f}"]
        cells += [f"{a.flops / 1e9:.2f}", f"{b.flops / 1e9:.2f}", f"{a.waits}", f"{b.waits}"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    run_script(main)
