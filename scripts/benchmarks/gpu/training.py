"""Training in each precision: the loss falls, everything stays finite, and so many steps in a second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from lightning_guide.training.learning_rate import adam
from lightning_guide.training.losses import EDMLoss, LossTerms
from scripts.benchmarks.gpu.models import edm2, labels
from scripts.benchmarks.gpu.place import Place, Row, Size, float32_as, holds, measured, skipped

__all__ = ["check"]

PRECISIONS = {"float32": None, "TF32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
WARM = 3  # steps that are not timed


def check(place: Place, size: Size) -> Iterator[Row]:
    """Yield the losses before and after, whether all weights are finite, and the speed, for each precision."""
    for name, dtype in PRECISIONS.items():
        if name == "TF32" and not place.is_cuda:
            yield skipped(name, "needs CUDA")
            continue
        with float32_as("tf32" if name == "TF32" else "ieee"):
            yield from _trained(name, dtype, place, size)


def _trained(name: str, dtype: torch.dtype | None, place: Place, size: Size) -> Iterator[Row]:
    torch.manual_seed(0)
    model = edm2(size).to(place.device)
    loss = EDMLoss().to(place.device)
    parameters = [*model.parameters(), *loss.parameters()]
    scaler = torch.amp.GradScaler(place.device.type, enabled=dtype == torch.float16)
    optimizer = adam(scaled=scaler.is_enabled())(parameters)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    x, condition = _images(size).to(place.device), labels(size.batch).to(place.device)

    def narrow() -> AbstractContextManager[object]:
        return nullcontext() if dtype is None else torch.autocast(place.device.type, dtype)

    def terms(seed: int) -> LossTerms:
        with narrow():
            return loss(model, x, condition, torch.Generator(place.device).manual_seed(seed))

    def error() -> float:
        with torch.no_grad():  # other noise than that of the steps
            return float(torch.stack([terms(10_000 + seed).error.mean() for seed in range(4)]).mean())

    before, begin = error(), 0.0
    for step in range(WARM + size.steps):
        if step == WARM:
            place.synchronize()
            begin = time.perf_counter()
        optimizer.zero_grad()
        scaler.scale(terms(step).objective.mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        model.constrain()
    place.synchronize()
    speed = size.steps / (time.perf_counter() - begin)
    after = error()
    yield holds(f"{name}, error before and after", f"{before:.3f} to {after:.3f}", "falls", after < before)
    finite = all(bool(parameter.isfinite().all()) for parameter in parameters)
    yield holds(f"{name}, weights", "finite" if finite else "not finite", "finite", finite)
    yield measured(f"{name}, steps per second", f"{speed:.3g}")
    if place.is_cuda:
        yield measured(f"{name}, peak memory", f"{torch.cuda.max_memory_allocated(place.device) / 2**30:.2f} GiB")
        torch.cuda.reset_peak_memory_stats(place.device)


def _images(size: Size) -> Tensor:
    """Return smooth images (B, 3, H, W) that a network soon knows by heart."""
    coarse = torch.randn(size.batch, 3, 2, 2, generator=torch.Generator().manual_seed(3))
    return 0.5 * nn.functional.interpolate(coarse, (size.side, size.side), mode="bilinear")
