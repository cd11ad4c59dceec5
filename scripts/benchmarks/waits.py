"""Kernels and waits of the host in one training step and one network call, counted on an emulated device.

    python -m scripts.benchmarks.waits

The network is EDM2's with 64 channels on 32 x 32 x 3 with 10 classes, for 2 samples. A kernel is an operation of torch
that computes something; a library may run several for one. The counts need no GPU and hold for every batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

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
from scripts.lib.command_line import run_script
from scripts.lib.emulated_device import DEVICE, EmulatedDevice

__all__ = ["counts", "main"]

BATCH = 2
SAMPLER, CALLS = Heun(KarrasGrid(2)), 3


def counts(network: EDM2UNet) -> dict[str, tuple[int, int]]:
    """Return what is done -> kernels and waits, for a network with classes: a step of training, calls of sampling."""
    found: dict[str, tuple[int, int]] = {}
    with EmulatedDevice() as device:
        model = Preconditioned(network).to(DEVICE)
        found["training step"] = _counted(device, _training_step(model))
        model.eval().requires_grad_(False)
        guider = Preconditioned(EDM2UNet(network.data_shape, num_classes=network.num_classes, model_channels=8))
        guided: dict[str, Denoiser] = {
            "without guidance": model,
            "classifier-free guidance": ClassifierFreeGuidance(2.0, positive=model),
            "autoguidance": Autoguidance(guider.to(DEVICE).eval(), 2.0, positive=model),
        }
        for name, denoiser in guided.items():
            kernels, waits = _counted(device, _sampling(fuse_weights(denoiser)))
            found[f"network call of sampling, {name}"] = kernels // CALLS, -(-waits // CALLS)
    return found


def _counted(device: EmulatedDevice, work: Callable[[], object]) -> tuple[int, int]:
    work()  # states of the optimizer are made
    device.forget()
    work()
    return device.kernels, len(device.waits)


def _training_step(model: Preconditioned) -> Callable[[], object]:
    loss, guard = EDMLoss().to(DEVICE), GradientGuard(100)
    optimizer = adam(scaled=False, elements=3072)([*model.parameters(), *loss.parameters()])
    x = torch.zeros(BATCH, *model.data_shape, device=DEVICE)
    labels = torch.zeros(BATCH, dtype=torch.int64, device=DEVICE)

    def step() -> None:
        optimizer.zero_grad()
        loss(model, x, labels, torch.Generator(DEVICE).manual_seed(0)).objective.mean().backward()
        guard.check(model, optimizer, 0)
        optimizer.step()
        model.constrain()

    return step


def _sampling(denoiser: Denoiser) -> Callable[[], object]:
    labels = torch.zeros(BATCH, dtype=torch.int64)
    return lambda: SAMPLER.sample(denoiser, seeds=SampleSeeds(0, range(BATCH)), condition=labels, device=DEVICE)


def main() -> None:
    """Print the table."""
    network = EDM2UNet((3, 32, 32), num_classes=10, model_channels=64)
    print("| | kernels | waits |\n| --- | ---: | ---: |")
    for name, (kernels, waits) in counts(network).items():
        print(f"| {name} | {kernels:,} | {waits} |")


if __name__ == "__main__":
    run_script(main)
