"""The promises of the emulated device: no wait in sampling, and about as many kernels as operations."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import Autoguidance, ClassifierFreeGuidance, PerturbedAttentionGuidance
from lightning_guide.inference import fuse_weights
from scripts.benchmarks.gpu.models import draw, edm2
from scripts.benchmarks.gpu.place import Place, Row, Size, holds, measured, skipped
from scripts.lib.emulated_device import DEVICE, EmulatedDevice

__all__ = ["check"]

COUNT = 2


def check(place: Place, size: Size) -> Iterator[Row]:
    """Yield the waits and kernels of two steps of Euler's sampler, on the emulated device and on this one."""
    torch.manual_seed(0)
    model = edm2(size).eval().requires_grad_(False)
    guider = edm2(size, channels=8).eval().requires_grad_(False)
    guidances: dict[str, Denoiser] = {
        "unguided": model,
        "CFG": ClassifierFreeGuidance(2.0, positive=model),
        "autoguidance": Autoguidance(guider, 2.0, positive=model),
    }
    if size.levels > 1:  # one level has no attention
        guidances["PAG"] = PerturbedAttentionGuidance(2.0, positive=model)
    for name, denoiser in guidances.items():
        with EmulatedDevice() as device:
            emulated = fuse_weights(copy.deepcopy(denoiser).to(DEVICE))
            draw(emulated, DEVICE, COUNT)
            device.forget()
            draw(emulated, DEVICE, COUNT)
            kernels, waits = device.kernels, list(device.waits)
        yield holds(f"{name}, waits by emulation", str(len(waits)), "0", not waits)
        if not place.is_cuda:
            yield skipped(f"{name}, waits and kernels of a GPU ({kernels} operations by emulation)", "needs CUDA")
            continue
        yield from _on_cuda(name, fuse_weights(copy.deepcopy(denoiser).to(place.device)), place, kernels)


def _on_cuda(name: str, denoiser: Denoiser, place: Place, operations: int) -> Iterator[Row]:
    """Yield whether anything waits, by CUDA's own report, and the kernels that the profiler saw."""
    draw(denoiser, place.device, COUNT)
    place.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        draw(denoiser, place.device, COUNT)
        said = ""
    except RuntimeError as error:
        said = str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    yield holds(f"{name}, waits by CUDA", said or "0", "0", not said)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        draw(denoiser, place.device, COUNT)
        place.synchronize()
    kernels = sum(
        event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
        for event in profiler.events()
    )
    yield measured(f"{name}, kernels", f"{kernels} for {operations} operations by emulation")
